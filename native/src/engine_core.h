// The engine's shared state and its threads.
//
// One mutex, engine_mutex to clang, guards all queues and jobs: work is handed over a chunk or a
// run of lookups at a time, so it is taken some thousand times a second at most. Nobody does I/O or
// copies payload under it. Lock order: a CopyGate's mutex is never taken while holding mutex_, nor
// the other way round; whoever gives up a file revokes its gate first and settles it afterwards.
// The first to settle a file decides its status.
#pragma once

#include <array>
#include <atomic>
#include <limits>
#include <optional>
#include <thread>

#include "deadlines.h"
#include "engine_lock.h"
#include "job_table.h"
#include "kvshelf/use_time.h"
#include "load_queue.h"
#include "lookup_queue.h"
#include "staging_pool.h"
#include "store_queue.h"
#include "wakeups.h"
#include "workers.h"

namespace kvshelf {

// What a thread that replaces another needs: made before it is known under the lock who hangs.
struct Spare {
  Role role = Role::kIo;
  std::shared_ptr<ThreadContext> context;
};

// Throws std::invalid_argument, which names the row, if the path is not that of a file beneath.
void CheckPath(std::size_t row, const std::string& path);

class EngineCore : public std::enable_shared_from_this<EngineCore> {
 public:
  explicit EngineCore(EngineSetup setup);
  ~EngineCore();
  void Start();  // after construction: threads co-own the core

  void SubmitTransfers(JobKind kind, JobId id, const Batch& batch);
  void SubmitLookup(JobId id, std::vector<std::string> paths);
  void SubmitLookupKeys(JobId id, std::vector<std::string> folders, std::vector<std::string> keys,
                        std::vector<std::uint32_t> runs);
  void SubmitProbe(JobId id, std::vector<std::string> paths, std::uint64_t bytes_max);
  void Touch(std::vector<std::string> paths);
  void TouchKeys(const std::vector<std::string>& folders, const std::vector<std::string>& keys,
                 const std::vector<std::int64_t>& times_ns, bool always);
  void SetClock(std::int64_t ahead_ns) { clock_.Set(ahead_ns); }
  std::vector<Report> Poll();
  bool HasReports() const { return jobs_.has_reports(); }
  bool Wait(std::span<const JobId> ids, Phase phase, double timeout_seconds);
  void Release(std::span<const JobId> ids);
  void Cancel(std::span<const JobId> ids);
  bool Drain(double timeout_seconds);
  EngineStats Stats() const;
  bool Close(double timeout_seconds);

 private:
  using TransferRef = std::shared_ptr<Transfer>;

  // engine_submit.cpp
  std::shared_ptr<Job> MakeJob(JobKind kind, JobId id, const Batch& batch, std::size_t rows) const;
  void CheckBatch(JobKind kind, const Batch& batch) const;
  void CheckRow(JobKind kind, const Batch& batch, std::size_t row) const;
  void AddJob(const std::shared_ptr<Job>& job) ENGINE_LOCKED;
  void AddLookup(const std::shared_ptr<Job>& job);
  void EnqueueParts(const TransferRef& file) ENGINE_LOCKED;
  void EnqueueLoads(const std::shared_ptr<Job>& job) ENGINE_LOCKED;
  void EnqueueStores(const std::shared_ptr<Job>& job) ENGINE_LOCKED;

  // engine_workers.cpp
  std::shared_ptr<ThreadContext> MakeContext(Role role) const;  // throws std::bad_alloc or the like
  Workers::Body Body();
  void RunWorker(Worker& worker);
  void IoLoop(Worker& worker, ThreadContext& context);
  void CopierLoop(ThreadContext& context);
  void MetaLoop(Worker& worker);

  // engine_transfers.cpp
  ChunkIdentity IdentityOf(const Transfer& file) const;
  static bool AwaitEvent(const Transfer& file, ThreadContext& context);
  bool PopLoad(LoadPart& part) ENGINE_LOCKED;
  void Load(EngineLock& lock ENGINE_LOCKED, LoadPart part, Worker& worker);
  void FinishCopying(EngineLock& lock ENGINE_LOCKED, Worker& worker);
  void EndPart(Transfer& file, FileResult result, bool removed) KVSHELF_EXCLUDES(engine_mutex);
  void StoreThrough(Transfer& file, ThreadContext& context) KVSHELF_EXCLUDES(engine_mutex);
  FileResult WriteFromBlocks(Transfer& file, ChunkWriter& writer, ThreadContext& context);
  void TakeBytes(EngineLock& lock ENGINE_LOCKED, const TransferRef& file, StagingBuffer buffer,
                 ThreadContext& context);
  static bool TakePart(Transfer& file, std::uint64_t begin, std::uint64_t end, std::byte* staging,
                       ThreadContext& context);
  void AllTaken(const TransferRef& file) ENGINE_LOCKED;
  void WriteBehind(EngineLock& lock ENGINE_LOCKED, Transfer& file, ThreadContext& context);
  bool BeginWriteBehind(EngineLock& lock ENGINE_LOCKED, Transfer& file, ThreadContext& context);
  void EndWriteBehind(EngineLock& lock ENGINE_LOCKED, Transfer& file, FileResult result,
                      std::uint64_t bytes);

  // engine_meta.cpp
  void Probe(EngineLock& lock ENGINE_LOCKED, const LookupRun& run);
  FileResult ProbeStored(const Transfer& file);
  FileResult ProbeOne(Job& job, std::size_t index, std::uint64_t* bytes);
  void AddTouches(std::vector<TouchRequest> touches);
  void TouchSome(EngineLock& lock ENGINE_LOCKED, Worker& worker);

  // engine_supervisor.cpp
  void Supervise();
  void Expire(EngineLock& lock ENGINE_LOCKED, DeadlineKind kind, TimePoint now);
  void GiveUp(EngineLock& lock ENGINE_LOCKED, const std::shared_ptr<Job>& job,
              std::vector<std::size_t> files, FileStatus status);
  void EndCopies(EngineLock& lock ENGINE_LOCKED, TimePoint now);
  void AbandonHung(EngineLock& lock ENGINE_LOCKED, TimePoint now);
  std::vector<Spare> MakeSpares(EngineLock& lock ENGINE_LOCKED, TimePoint now);
  void GiveUpLoadsBefore(EngineLock& lock ENGINE_LOCKED, TimePoint submitted);
  void GiveUpAll(EngineLock& lock ENGINE_LOCKED);

  // Fixed by the constructor.
  EngineConfig config_;
  ChunkIoOptions io_options_;
  std::vector<GroupMemory> groups_;
  NamespaceDigest namespace_digest_;
  std::uint32_t rank_;
  std::optional<AuthKey> auth_key_;
  std::shared_ptr<Device> device_;
  RootDir root_;

  Mutex close_mutex_;  // serialises Close; taken before mutex_

  mutable std::mutex mutex_;
  Wakeups wake_;
  bool closed_ ENGINE_GUARDED = false;
  bool stopping_ ENGINE_GUARDED = false;
  bool supervisor_exited_ ENGINE_GUARDED = false;

  LoadQueue loads_ ENGINE_GUARDED;
  StagingPool staging_;
  StoreQueue stores_;
  JobTable jobs_;
  LookupQueue lookups_;
  FileClock clock_;

  Deadlines deadlines_;
  Workers workers_;
  std::thread supervisor_thread_ ENGINE_GUARDED;
  EngineStats stats_ ENGINE_GUARDED;
};

}  // namespace kvshelf
