// The engine's shared state and its threads.
//
// One mutex guards all queues and jobs: work is handed over a chunk or a run of lookups at a time,
// so it is taken some thousand times a second at most. Nobody does I/O or copies payload under it.
// Lock order: a CopyGate's mutex is never taken while holding mutex_, nor the other way round;
// whoever gives up a file revokes its gate first and settles it afterwards. The first to settle a
// file decides its status.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <limits>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_map>

#include "job.h"
#include "kvshelf/use_time.h"
#include "load_queue.h"

namespace kvshelf {

inline constexpr TimePoint kNever = TimePoint::max();

enum class Role : std::uint8_t { kIo, kLoadOnly, kMeta, kCopier };
inline constexpr std::size_t kRoles = 4;

// Guarded by EngineCore::mutex_.
struct Worker {
  Role role = Role::kIo;
  std::string name;
  std::thread thread;
  TimePoint busy_until = kNever;  // when the call it makes counts as hung
  bool abandoned = false;         // it hung; another does its work
  bool touching = false;
  bool exited = false;
  std::shared_ptr<Transfer> loading;  // the load that it reads a part of
  LoadPart copying;                   // a part that is read, whose last copies are under way
  std::uint64_t part_copies = 0;      // of the context's stream: with the last of them it ends
  TimePoint copying_until = kNever;   // then somebody else ends it, if the thread still reads
  std::shared_ptr<ThreadContext> context;
};

// What a thread that replaces another needs: made before it is known under the lock who hangs.
struct Spare {
  Role role = Role::kIo;
  std::shared_ptr<ThreadContext> context;
};

struct TouchRequest {
  std::string path;
  std::int64_t time_ns = 0;  // of the file system; 0: when it is done
  bool always = false;       // also if the last use is not old
};

// Deadlines in the order of time. All that is put into one has the same time-out, so a queue will
// do; what is done already is skipped.
struct Deadline {
  TimePoint time;
  std::weak_ptr<Job> job;
  std::size_t index = 0;
};
using DeadlineQueue = std::deque<Deadline>;

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
  bool HasReports() const { return has_reports_.load(std::memory_order_acquire); }
  bool Wait(std::span<const JobId> ids, Phase phase, double timeout_seconds);
  void Release(std::span<const JobId> ids);
  void Cancel(std::span<const JobId> ids);
  bool Drain(double timeout_seconds);
  EngineStats Stats() const;
  bool Close(double timeout_seconds);

 private:
  using Lock = std::unique_lock<std::mutex>;
  using TransferRef = std::shared_ptr<Transfer>;

  // engine_submit.cpp
  std::shared_ptr<Job> MakeJob(JobKind kind, JobId id, const Batch& batch, std::size_t rows) const;
  void CheckBatch(JobKind kind, const Batch& batch) const;
  void CheckRow(JobKind kind, const Batch& batch, std::size_t row) const;
  void AddJob(const std::shared_ptr<Job>& job);  // locked
  void AddLookup(const std::shared_ptr<Job>& job);
  void EnqueueParts(const TransferRef& file);
  void EnqueueLoads(const std::shared_ptr<Job>& job);
  void EnqueueStores(const std::shared_ptr<Job>& job);
  void EnqueueMeta(const std::shared_ptr<Job>& job);
  void DropIdleLookups(std::vector<std::shared_ptr<Job>>& done);                 // locked
  std::vector<std::shared_ptr<Job>> FindJobs(std::span<const JobId> ids) const;  // locked
  bool Reached(JobId id, Phase phase) const;                                     // locked

  // engine_jobs.cpp; all locked
  bool Settled(const Transfer& file) const;
  bool GivenUp(const Transfer& file) const;
  void LeaveQueue(Job& job, std::size_t index);  // kQueued -> kRunning, and the gauges
  void MarkTaken(Job& job, std::size_t index);
  void Settle(Job& job, std::size_t index, FileResult result, std::uint64_t bytes);
  void DropStaging(Transfer& file);
  void ReportIfDue(Job& job);
  void PushReport(Job& job, Phase phase);
  StagingBuffer TakeBuffer(Lock& lock);  // lets go of it while memory is made
  void ReturnBuffer(StagingBuffer buffer);
  bool BufferAvailable() const;

  // engine_workers.cpp
  std::shared_ptr<ThreadContext> MakeContext(Role role) const;  // throws std::bad_alloc or the like
  void Spawn(Role role, std::shared_ptr<ThreadContext> context);  // locked; throws likewise
  void RunWorker(Worker& worker);
  void IoLoop(Worker& worker, ThreadContext& context);
  void CopierLoop(ThreadContext& context);
  void MetaLoop(Worker& worker);
  bool MayTouch() const;                                    // locked
  void WakeMeta();                                          // locked
  void BeginCall(Worker& worker, Clock::duration timeout);  // locked
  bool EndCall(Worker& worker);                             // locked; false: leave
  void WakeAll();

  // engine_transfers.cpp
  ChunkIdentity IdentityOf(const Transfer& file) const;
  static bool AwaitEvent(const Transfer& file, ThreadContext& context);
  TransferRef PopUnsettled(std::deque<TransferRef>& queue);  // locked
  bool PopLoad(LoadPart& part);                              // locked
  void Load(Lock& lock, LoadPart part, Worker& worker);
  void FinishCopying(Lock& lock, Worker& worker);
  void EndPart(Transfer& file, FileResult result, bool removed);
  void StoreThrough(Transfer& file, ThreadContext& context);
  FileResult WriteFromBlocks(Transfer& file, ChunkWriter& writer, ThreadContext& context);
  void TakeBytes(Lock& lock, const TransferRef& file, StagingBuffer buffer, ThreadContext& context);
  static bool TakePart(Transfer& file, std::uint64_t begin, std::uint64_t end, std::byte* staging,
                       ThreadContext& context);
  void AllTaken(Transfer& file);  // locked
  void WriteBehind(Lock& lock, Transfer& file, ThreadContext& context);
  bool BeginWriteBehind(Lock& lock, Transfer& file, ThreadContext& context);
  void EndWriteBehind(Lock& lock, Transfer& file, FileResult result, std::uint64_t bytes);

  // engine_meta.cpp
  void Probe(Lock& lock, const MetaBatch& batch);
  FileResult ProbeStored(const Transfer& file);
  FileResult ProbeOne(Job& job, std::size_t index, std::uint64_t* bytes);
  void AddTouches(std::vector<TouchRequest> touches);
  void TouchSome(Lock& lock, Worker& worker);

  // engine_supervisor.cpp
  void Supervise();
  void Arm(TimePoint deadline);  // locked
  TimePoint NextDeadline();      // locked
  TimePoint FrontOf(DeadlineQueue& queue);
  void Expire(Lock& lock, DeadlineQueue& queue, TimePoint now, FileStatus status);
  void GiveUp(Lock& lock, const std::shared_ptr<Job>& job, std::vector<std::size_t> files,
              FileStatus status);
  TimePoint HungAt(const Worker& worker) const;  // locked
  void EndCopies(Lock& lock, TimePoint now);
  void AbandonHung(Lock& lock, TimePoint now);
  std::vector<Spare> MakeSpares(Lock& lock, TimePoint now);
  bool AnybodyLoads() const;
  bool NothingReadSince(TimePoint since) const;  // locked
  void GiveUpLoadsBefore(Lock& lock, TimePoint submitted);
  void Reap(Lock& lock);
  void CancelQueued(const std::shared_ptr<Job>& job);  // locked
  void GiveUpAll(Lock& lock);

  // Fixed by the constructor.
  EngineConfig config_;
  ChunkIoOptions io_options_;
  std::vector<GroupMemory> groups_;
  NamespaceDigest namespace_digest_;
  std::uint32_t rank_;
  std::optional<AuthKey> auth_key_;
  std::shared_ptr<Device> device_;
  RootDir root_;
  std::array<int, kRoles> nominal_{};  // threads of each role

  std::atomic<bool> has_reports_{false};
  std::mutex close_mutex_;  // serialises Close; taken before mutex_

  mutable std::mutex mutex_;  // guards everything below
  std::condition_variable io_work_;
  std::condition_variable load_work_;
  std::condition_variable meta_work_;
  std::condition_variable copy_work_;   // a file to copy, a buffer freed, or a file given up
  std::condition_variable supervisor_;  // an earlier deadline, or the end
  std::condition_variable changed_;     // for Wait, Drain and Close: a report, a touch, an exit
  bool closed_ = false;
  bool stopping_ = false;
  bool supervisor_exited_ = false;
  TimePoint supervisor_wakes_ = kNever;

  std::unordered_map<JobId, std::shared_ptr<Job>> jobs_;
  std::size_t unfinished_jobs_ = 0;
  std::vector<Report> reports_;

  LoadQueue loads_;
  std::deque<TransferRef> stores_;  // to be written: whole files, or those with staged parts
  std::deque<TransferRef> copies_;  // write-behind: bytes to be taken
  std::vector<std::unique_ptr<ChunkWriter>> leftovers_;  // of files given up; I/O threads end them
  std::deque<MetaBatch> lookups_;
  FileClock clock_;
  std::deque<TouchRequest> touches_;
  std::size_t touching_ = 0;      // threads
  std::size_t meta_waiting_ = 0;  // threads
  bool meta_waking_ = false;      // one of them was woken and is on its way

  DeadlineQueue load_deadlines_;
  DeadlineQueue lookup_deadlines_;
  DeadlineQueue take_deadlines_;     // of stores: for taking the bytes
  DeadlineQueue publish_deadlines_;  // of store files whose bytes were taken or writing began

  std::vector<StagingBuffer> free_buffers_;
  std::size_t buffers_made_ = 0;
  std::size_t buffers_max_;

  std::vector<std::shared_ptr<Worker>> workers_;
  std::thread supervisor_thread_;
  std::array<int, kRoles> live_{};  // threads that are neither abandoned nor gone
  std::array<int, kRoles> threads_made_{};
  int replaced_ = 0;  // abandoned threads whose replacement is alive
  EngineStats stats_;
};

}  // namespace kvshelf
