// An engine's beginning, its reports and its end. Each kind of job is submitted where its work is:
// load_work.cpp, store_work.cpp, lookup_work.cpp.
#include "kvshelf/engine.h"

#include <pthread.h>

#include <algorithm>

#include "engine_parts.h"
#include "supervisor.h"
#include "worker_loops.h"

namespace kvshelf {
namespace {

// Threads that are not hung need a moment to end, whatever time Close was given.
constexpr auto kExitGrace = std::chrono::milliseconds(200);

Workers::Body BodyOf(const std::shared_ptr<EngineParts>& parts) {
  return [parts](Worker& worker) { WorkerLoops(*parts).Run(worker); };
}

void Supervise(const std::shared_ptr<EngineParts>& parts) {
  ::pthread_setname_np(::pthread_self(), "kvs-supervisor");
  Supervisor supervisor(*parts, BodyOf(parts));
  EngineLock lock(parts->mutex);
  supervisor.Run(lock);
  parts->supervisor_exited = true;
  parts->wake.changed.notify_all();
}

}  // namespace

Engine::Engine(EngineSetup setup) : parts_(std::make_shared<EngineParts>(std::move(setup))) {
  try {
    const EngineLock lock(parts_->mutex);
    parts_->workers.Start(BodyOf(parts_));
    supervisor_ = std::thread([parts = parts_] { Supervise(parts); });
  } catch (...) {  // no more threads: end those that were started, they own the parts
    Close(0);
    throw;
  }
}

Engine::~Engine() { Close(1.0); }

bool Engine::HasReports() const { return parts_->jobs.has_reports(); }

std::vector<Report> Engine::Poll() {
  if (!HasReports()) return {};
  std::vector<std::shared_ptr<Job>> done;  // freed after the lock
  const EngineLock lock(parts_->mutex);
  std::vector<Report> reports = parts_->jobs.TakeReports(done);
  parts_->lookups.DropIdle(done);
  return reports;
}

bool Engine::Wait(std::span<const JobId> ids, Phase phase, double timeout_seconds) {
  const TimePoint deadline = Clock::now() + ToDuration(timeout_seconds);
  EngineLock lock(parts_->mutex);
  return parts_->wake.changed.wait_until(lock, deadline, [&] {
    return std::all_of(ids.begin(), ids.end(),
                       [&](JobId id) ENGINE_LOCKED { return parts_->jobs.HasReached(id, phase); });
  });
}

void Engine::Release(std::span<const JobId> ids) {
  EngineLock lock(parts_->mutex);
  for (const auto& job : parts_->jobs.Unfinished(ids)) {
    if (job->kind != JobKind::kStore) continue;
    job->progress.let_go = true;
    for (std::size_t i = 0; i < job->size(); ++i) {
      const FileState state = job->progress.states[i];
      if (state == FileState::kTaken || state == FileState::kSettled) continue;
      lock.unlock();
      const bool dropped = job->transfers[i].gate.RevokeUnlessTaken();
      lock.lock();
      if (dropped) {
        parts_->jobs.Settle(*job, i, {FileStatus::kDropped, 0}, 0);
      } else {
        parts_->jobs.MarkTaken(*job, i);  // the last byte was taken just now
      }
    }
    parts_->jobs.ReportIfDue(*job);
  }
}

void Engine::Cancel(std::span<const JobId> ids) {
  const EngineLock lock(parts_->mutex);
  for (const auto& job : parts_->jobs.Unfinished(ids)) parts_->jobs.CancelQueued(*job);
}

bool Engine::Drain(double timeout_seconds) {
  const TimePoint deadline = Clock::now() + ToDuration(timeout_seconds);
  EngineLock lock(parts_->mutex);
  return parts_->wake.changed.wait_until(lock, deadline, [&]() ENGINE_LOCKED {
    return parts_->jobs.AllFinished() && !parts_->lookups.IsTouching();
  });
}

EngineStats Engine::Stats() const {
  const EngineLock lock(parts_->mutex);
  EngineStats stats;
  stats.direct = parts_->basis.io_options.direct;
  stats.removed_bad = parts_->removed_bad;
  stats.stored_payload_bytes = parts_->stored.payload;
  stats.stored_file_bytes = parts_->stored.files;
  stats.hung_threads = parts_->workers.hung();
  parts_->jobs.AddTo(stats);
  parts_->lookups.AddTo(stats);
  stats.write_buffer_used_bytes = parts_->staging.used_bytes();
  return stats;
}

bool Engine::Close(double timeout_seconds) {
  const LockGuard close_lock(close_mutex_);
  const TimePoint deadline = Clock::now() + ToDuration(timeout_seconds);
  EngineLock lock(parts_->mutex);
  parts_->closed = true;
  parts_->lookups.DropTouches();
  for (const auto& job : parts_->jobs.All()) parts_->jobs.CancelQueued(*job);
  parts_->wake.changed.wait_until(lock, deadline,
                                  [&]() ENGINE_LOCKED { return parts_->jobs.AllFinished(); });
  for (const auto& job : parts_->jobs.All()) {
    parts_->jobs.GiveUpUnsettled(lock, job, FileStatus::kCancelled);
  }
  parts_->stopping = true;
  parts_->wake.AllThreads();
  const auto all_exited = [&]() ENGINE_LOCKED {
    return parts_->supervisor_exited && parts_->workers.AllExited();
  };
  parts_->wake.changed.wait_until(lock, std::max(deadline, Clock::now() + kExitGrace), all_exited);
  if (supervisor_.joinable()) {  // may be at a copy or an allocation that takes its time
    parts_->supervisor_exited ? supervisor_.join() : supervisor_.detach();
  }
  parts_->workers.Reap(lock);
  parts_->workers.Detach();  // they find their files given up when they come back
  // Temp files that no thread was left to remove; a cleaner does, once this process is gone.
  parts_->stores.LeakLeftovers();
  return parts_->workers.all().empty() && parts_->supervisor_exited;
}

}  // namespace kvshelf
