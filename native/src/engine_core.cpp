#include "engine_core.h"

#include <pthread.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <stdexcept>

#include "batch.h"
#include "load_work.h"
#include "store_work.h"
#include "supervisor.h"
#include "worker_loops.h"

namespace kvshelf {
namespace {

// Threads that are not hung need a moment to end, whatever time Close was given.
constexpr auto kExitGrace = std::chrono::milliseconds(200);

void AddJob(EngineParts& parts, const std::shared_ptr<Job>& job) ENGINE_LOCKED {
  if (parts.closed) throw EngineClosed();
  parts.jobs.Add(job);
}

void AddLookup(EngineParts& parts, const std::shared_ptr<Job>& job) {
  const EngineConfig& config = parts.basis.config;
  const EngineLock lock(parts.mutex);
  AddJob(parts, job);
  std::uint64_t& queued = parts.jobs.queued(job->kind);
  const std::uint64_t room = config.queue_files - std::min(config.queue_files, queued);
  queued += job->size();
  for (std::size_t i = room; i < job->size(); ++i) {
    parts.jobs.Settle(*job, i, FileResult::IoError(EAGAIN), 0);
  }
  parts.lookups.Add(job);
  parts.deadlines.Add(DeadlineKind::kLookup,
                      {job->submitted + ToDuration(config.lookup_timeout_seconds), job});
}

void AddTouches(EngineParts& parts, std::vector<TouchRequest> touches) {
  const EngineLock lock(parts.mutex);
  if (parts.closed) throw EngineClosed();
  parts.lookups.AddTouches(std::move(touches));
}

}  // namespace

EngineCore::EngineCore(EngineSetup setup) : parts_(std::move(setup)) {}

EngineCore::~EngineCore() = default;

void EngineCore::Start() {
  const EngineLock lock(parts_.mutex);
  parts_.workers.Start(Body());
  supervisor_thread_ = std::thread([core = shared_from_this()] { core->Supervise(); });
}

Workers::Body EngineCore::Body() {
  return [core = shared_from_this()](Worker& worker) { WorkerLoops(core->parts_).Run(worker); };
}

void EngineCore::Supervise() {
  ::pthread_setname_np(::pthread_self(), "kvs-supervisor");
  Supervisor supervisor(parts_, Body());
  EngineLock lock(parts_.mutex);
  supervisor.Run(lock);
  supervisor_exited_ = true;
  parts_.wake.changed.notify_all();
}

void EngineCore::SubmitTransfers(JobKind kind, JobId id, const Batch& batch) {
  CheckBatch(parts_.basis, kind, batch);
  const std::shared_ptr<Job> job = MakeTransferJob(parts_.basis, kind, id, batch);
  job->after = parts_.basis.device->RecordEvent(batch.stream);
  const EngineLock lock(parts_.mutex);
  AddJob(parts_, job);
  if (kind == JobKind::kLoad) {
    LoadWork(parts_).Enqueue(job);
  } else {
    StoreWork(parts_).Enqueue(job);
  }
}

void EngineCore::SubmitLookup(JobId id, std::vector<std::string> paths) {
  if (paths.empty()) throw std::invalid_argument("a lookup needs at least one path");
  for (std::size_t row = 0; row < paths.size(); ++row) CheckPath(row, paths[row]);
  const auto job = std::make_shared<Job>(JobKind::kLookup, id, paths.size());
  job->lookup.paths = std::move(paths);
  AddLookup(parts_, job);
}

// The lookup threads make the paths: for thousands of keys that is work, and the caller's thread
// is a scheduler's.
void EngineCore::SubmitLookupKeys(JobId id, std::vector<std::string> folders,
                                  std::vector<std::string> keys, std::vector<std::uint32_t> runs) {
  if (folders.empty() || keys.empty()) {
    throw std::invalid_argument("a lookup needs at least one folder and one key");
  }
  for (std::size_t row = 0; row < folders.size(); ++row) CheckPath(row, folders[row]);
  for (std::size_t row = 0; row < keys.size(); ++row) CheckKey(row, keys[row]);
  std::uint64_t end = 0;
  for (std::uint32_t& run : runs) {  // lengths become ends
    end += run;
    if (run == 0 || end > keys.size()) {
      throw std::invalid_argument("runs: each at least 1, together at most as many as keys");
    }
    run = static_cast<std::uint32_t>(end);
  }
  const std::shared_ptr<Job> job =
      std::make_shared<Job>(JobKind::kLookup, id, folders.size() * keys.size());
  LookupRequest& lookup = job->lookup;
  lookup.folders = std::move(folders);
  lookup.keys = std::move(keys);
  lookup.run_ends = std::move(runs);
  lookup.first_missing = std::make_unique<std::atomic<std::uint32_t>[]>(lookup.run_ends.size());
  for (std::size_t run = 0; run < lookup.run_ends.size(); ++run) {
    lookup.first_missing[run] = std::numeric_limits<std::uint32_t>::max();
  }
  AddLookup(parts_, job);
}

void EngineCore::SubmitProbe(JobId id, std::vector<std::string> paths, std::uint64_t bytes_max) {
  if (paths.empty()) throw std::invalid_argument("a probe needs at least one path");
  for (std::size_t row = 0; row < paths.size(); ++row) CheckPath(row, paths[row]);
  const auto job = std::make_shared<Job>(JobKind::kProbe, id, paths.size());
  job->lookup.paths = std::move(paths);
  job->lookup.probe_bytes = bytes_max;
  AddLookup(parts_, job);
}

void EngineCore::Touch(std::vector<std::string> paths) {
  std::vector<TouchRequest> touches;
  touches.reserve(paths.size());
  for (std::size_t row = 0; row < paths.size(); ++row) {
    CheckPath(row, paths[row]);
    touches.push_back({std::move(paths[row])});
  }
  AddTouches(parts_, std::move(touches));
}

void EngineCore::TouchKeys(const std::vector<std::string>& folders,
                           const std::vector<std::string>& keys,
                           const std::vector<std::int64_t>& times_ns, bool always) {
  if (keys.size() != times_ns.size()) throw std::invalid_argument("times_ns: one a key");
  for (std::size_t row = 0; row < folders.size(); ++row) CheckPath(row, folders[row]);
  std::vector<TouchRequest> touches;
  touches.reserve(folders.size() * keys.size());
  const std::int64_t ahead_ns = parts_.basis.clock.AheadOfRealtime();
  for (std::size_t row = 0; row < keys.size(); ++row) {
    CheckKey(row, keys[row]);
    if (times_ns[row] <= 0) throw std::invalid_argument("times_ns: after 1970");
    const std::int64_t time_ns = std::max<std::int64_t>(1, times_ns[row] + ahead_ns);
    for (const std::string& folder : folders) {
      touches.push_back({ChunkPath(folder, keys[row]), time_ns, always});
    }
  }
  AddTouches(parts_, std::move(touches));
}

std::vector<Report> EngineCore::Poll() {
  if (!HasReports()) return {};
  std::vector<std::shared_ptr<Job>> done;  // freed after the lock
  const EngineLock lock(parts_.mutex);
  std::vector<Report> reports = parts_.jobs.TakeReports(done);
  parts_.lookups.DropIdle(done);
  return reports;
}

bool EngineCore::Wait(std::span<const JobId> ids, Phase phase, double timeout_seconds) {
  const TimePoint deadline = Clock::now() + ToDuration(timeout_seconds);
  EngineLock lock(parts_.mutex);
  return parts_.wake.changed.wait_until(lock, deadline, [&] {
    return std::all_of(ids.begin(), ids.end(),
                       [&](JobId id) ENGINE_LOCKED { return parts_.jobs.HasReached(id, phase); });
  });
}

void EngineCore::Release(std::span<const JobId> ids) {
  EngineLock lock(parts_.mutex);
  for (const auto& job : parts_.jobs.Unfinished(ids)) {
    if (job->kind != JobKind::kStore) continue;
    job->progress.let_go = true;
    for (std::size_t i = 0; i < job->size(); ++i) {
      const FileState state = job->progress.states[i];
      if (state == FileState::kTaken || state == FileState::kSettled) continue;
      lock.unlock();
      const bool dropped = job->transfers[i].gate.RevokeUnlessTaken();
      lock.lock();
      if (dropped) {
        parts_.jobs.Settle(*job, i, {FileStatus::kDropped, 0}, 0);
      } else {
        parts_.jobs.MarkTaken(*job, i);  // the last byte was taken just now
      }
    }
    parts_.jobs.ReportIfDue(*job);
  }
}

void EngineCore::Cancel(std::span<const JobId> ids) {
  const EngineLock lock(parts_.mutex);
  for (const auto& job : parts_.jobs.Unfinished(ids)) parts_.jobs.CancelQueued(*job);
}

bool EngineCore::Drain(double timeout_seconds) {
  const TimePoint deadline = Clock::now() + ToDuration(timeout_seconds);
  EngineLock lock(parts_.mutex);
  return parts_.wake.changed.wait_until(lock, deadline, [&]() ENGINE_LOCKED {
    return parts_.jobs.AllFinished() && !parts_.lookups.IsTouching();
  });
}

EngineStats EngineCore::Stats() const {
  const EngineLock lock(parts_.mutex);
  EngineStats stats;
  stats.direct = parts_.basis.io_options.direct;
  stats.removed_bad = parts_.removed_bad;
  stats.stored_payload_bytes = parts_.stored.payload;
  stats.stored_file_bytes = parts_.stored.files;
  stats.hung_threads = parts_.workers.hung();
  parts_.jobs.AddTo(stats);
  parts_.lookups.AddTo(stats);
  stats.write_buffer_used_bytes = parts_.staging.used_bytes();
  return stats;
}

bool EngineCore::Close(double timeout_seconds) {
  const LockGuard close_lock(close_mutex_);
  const TimePoint deadline = Clock::now() + ToDuration(timeout_seconds);
  EngineLock lock(parts_.mutex);
  parts_.closed = true;
  parts_.lookups.DropTouches();
  for (const auto& job : parts_.jobs.All()) parts_.jobs.CancelQueued(*job);
  parts_.wake.changed.wait_until(lock, deadline,
                                 [&]() ENGINE_LOCKED { return parts_.jobs.AllFinished(); });
  for (const auto& job : parts_.jobs.All()) {
    parts_.jobs.GiveUpUnsettled(lock, job, FileStatus::kCancelled);
  }
  parts_.stopping = true;
  parts_.wake.AllThreads();
  const auto all_exited = [&]() ENGINE_LOCKED {
    return supervisor_exited_ && parts_.workers.AllExited();
  };
  parts_.wake.changed.wait_until(lock, std::max(deadline, Clock::now() + kExitGrace), all_exited);
  if (supervisor_thread_.joinable()) {  // may be at a copy or an allocation that takes its time
    supervisor_exited_ ? supervisor_thread_.join() : supervisor_thread_.detach();
  }
  parts_.workers.Reap(lock);
  parts_.workers.Detach();  // they find their files given up when they come back
  // Temp files that no thread was left to remove; a cleaner does, once this process is gone.
  parts_.stores.LeakLeftovers();
  return parts_.workers.all().empty() && supervisor_exited_;
}

}  // namespace kvshelf
