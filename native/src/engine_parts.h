// What an engine's threads share.
//
// One mutex, engine_mutex to clang, guards all queues and jobs: work is handed over a chunk or a
// run of lookups at a time, so it is taken some thousand times a second at most. Nobody does I/O or
// copies payload under it. Lock order: a CopyGate's mutex is never taken while holding it, nor the
// other way round; whoever gives up a file revokes its gate first and settles it afterwards.
#pragma once

#include <atomic>
#include <mutex>

#include "deadlines.h"
#include "engine_basis.h"
#include "engine_lock.h"
#include "job_table.h"
#include "load_queue.h"
#include "lookup_queue.h"
#include "staging_pool.h"
#include "store_queue.h"
#include "wakeups.h"
#include "workers.h"

namespace kvshelf {

// What stores have published, in bytes: without the mutex, for threads that write.
struct StoredTotals {
  std::atomic<std::uint64_t> payload{0};
  std::atomic<std::uint64_t> files{0};

  void Add(std::uint64_t payload_bytes, std::uint64_t file_bytes) {
    payload += payload_bytes;
    files += file_bytes;
  }
};

struct EngineParts {
  explicit EngineParts(EngineSetup setup);

  // Takes a job in. Throws EngineClosed, and std::invalid_argument if its id is in use.
  void Add(const std::shared_ptr<Job>& job) ENGINE_LOCKED;

  EngineBasis basis;
  std::mutex mutex;
  Wakeups wake;
  StagingPool staging;
  StoreQueue stores;
  LoadQueue loads;
  LookupQueue lookups;
  JobTable jobs;
  Deadlines deadlines;
  Workers workers;
  StoredTotals stored;
  bool closed ENGINE_GUARDED = false;    // nothing more is submitted
  bool stopping ENGINE_GUARDED = false;  // threads end
  bool supervisor_exited ENGINE_GUARDED = false;
  std::uint64_t removed_bad ENGINE_GUARDED = 0;  // files
};

}  // namespace kvshelf
