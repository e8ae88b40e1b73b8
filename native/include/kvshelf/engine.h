// The engine: moves chunk files in batches on its own threads. The contract, method by method, is
// src/kvshelf/engine/base.py; this is its native side.
#pragma once

#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "kvshelf/config.h"
#include "kvshelf/device.h"
#include "kvshelf/file_ops.h"
#include "kvshelf/format.h"
#include "kvshelf/memory.h"
#include "kvshelf/status.h"
#include "kvshelf/thread_safety.h"

namespace kvshelf {

using JobId = std::int64_t;

// A call after Close.
class EngineClosed : public std::runtime_error {
 public:
  EngineClosed() : std::runtime_error("the engine is closed") {}
};

struct EngineSetup {
  std::string root;
  std::vector<GroupMemory> groups;
  EngineConfig config;
  NamespaceDigest namespace_digest{};
  std::uint32_t rank = 0;
  std::string auth_key;            // empty: chunk files are not authenticated
  std::string temp_prefix;         // empty: OwnTempPrefix()
  std::shared_ptr<FileOps> ops;    // null: the real system calls
  std::shared_ptr<Device> device;  // null: host memory
};

// The columns of base.py's Batch. Spans are copied before a Submit call returns.
struct Batch {
  std::vector<std::string> paths;
  std::vector<std::string> keys;
  std::span<const std::int32_t> groups;
  std::span<const std::int32_t> first_blocks;
  std::span<const std::int32_t> block_counts;
  std::span<const std::int32_t> block_ids;
  std::uintptr_t stream = 0;  // copies come after what is queued on this stream of the device
};

struct Report {
  JobId job_id;
  JobKind kind;
  Phase phase;
  std::vector<FileStatus> statuses;
  std::vector<int> errnos;  // empty if all are 0
  std::uint64_t payload_bytes;
  double seconds;
};

struct EngineStats {
  std::uint64_t queued_loads = 0;
  std::uint64_t queued_stores = 0;
  std::uint64_t queued_lookups = 0;
  std::uint64_t queued_touches = 0;
  std::uint64_t write_buffer_used_bytes = 0;
  std::uint64_t hung_threads = 0;
  std::uint64_t touched = 0;
  std::uint64_t touches_dropped = 0;
  std::uint64_t removed_bad = 0;
  std::uint64_t stored_payload_bytes = 0;
  std::uint64_t stored_file_bytes = 0;
  bool direct = false;
};

struct EngineParts;

// Thread-safe. Submit... and Touch throw std::invalid_argument for bad arguments, before anything
// is queued, and EngineClosed.
class Engine {
 public:
  // Throws std::invalid_argument for settings, std::system_error for the root.
  explicit Engine(EngineSetup setup);
  ~Engine();  // closes, and waits at most a second
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  void SubmitStore(JobId id, const Batch& batch);
  void SubmitLoad(JobId id, const Batch& batch);
  void SubmitLookup(JobId id, std::vector<std::string> paths);
  // Looks up the chunk file of each key in each folder (layout.h), key after key.
  // `runs` are the lengths of runs of keys, from the first on, of which only those before the first
  // missing one are of use: what comes after it may be kCancelled, not looked at.
  void SubmitLookupKeys(JobId id, std::vector<std::string> folders, std::vector<std::string> keys,
                        std::vector<std::uint32_t> runs = {});
  // Reads up to `bytes_max` of each file on the lookup threads, into nothing.
  void SubmitProbe(JobId id, std::vector<std::string> paths, std::uint64_t bytes_max);
  void Touch(std::vector<std::string> paths);
  // Marks the chunk files of each key, in each folder, as used at a time of CLOCK_REALTIME, in ns.
  // `always`: otherwise only those that are older by touch_interval_seconds.
  void TouchKeys(const std::vector<std::string>& folders, const std::vector<std::string>& keys,
                 const std::vector<std::int64_t>& times_ns, bool always);
  // The file system's clock, by FileClock::Set: by this one touches are written.
  void SetClock(std::int64_t ahead_ns);
  std::vector<Report> Poll();
  bool HasReports() const;  // one atomic load
  bool Wait(std::span<const JobId> ids, Phase phase, double timeout_seconds);
  void Release(std::span<const JobId> ids);
  void Cancel(std::span<const JobId> ids);
  bool Drain(double timeout_seconds);
  EngineStats Stats() const;
  bool Close(double timeout_seconds);

 private:
  std::shared_ptr<EngineParts> parts_;  // co-owned by its threads: one may hang and outlive us
  Mutex close_mutex_;                   // serializes Close; taken before the engine's
  std::thread supervisor_ KVSHELF_GUARDED_BY(close_mutex_);
};

}  // namespace kvshelf
