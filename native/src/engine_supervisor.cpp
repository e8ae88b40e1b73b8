// Deadlines, hung threads and the end of an engine.
#include <algorithm>
#include <iterator>

#include "engine_core.h"

namespace kvshelf {
namespace {

// Threads that are not hung need a moment to end, whatever time Close was given.
constexpr auto kExitGrace = std::chrono::milliseconds(200);

}  // namespace

// Runs until Close. Sleeps until the next deadline, and for ever while nothing is under way.
void EngineCore::Supervise() {
  ::pthread_setname_np(::pthread_self(), "kvs-supervisor");
  EngineLock lock(mutex_);
  while (!stopping_) {
    const TimePoint now = Clock::now();
    for (const DeadlineKind kind : kDeadlineKinds) Expire(lock, kind, now);
    EndCopies(lock, now);
    AbandonHung(lock, now);
    workers_.Reap(lock);
    if (stopping_) break;
    deadlines_.SleepUntil(lock, std::min(deadlines_.Next(), workers_.NextDeadline()));
  }
  supervisor_exited_ = true;
  wake_.changed.notify_all();
}

void EngineCore::Expire(EngineLock& lock, DeadlineKind kind, TimePoint now) {
  const FileStatus status =
      kind == DeadlineKind::kTake ? FileStatus::kDropped : FileStatus::kTimedOut;
  while (const auto deadline = deadlines_.PopOver(kind, now)) {
    const std::shared_ptr<Job> job = deadline->job.lock();
    if (job == nullptr) continue;
    std::vector<std::size_t> files;
    if (kind == DeadlineKind::kPublish) {
      files.push_back(deadline->index);
    } else {
      for (std::size_t i = 0; i < job->size(); ++i) {
        // Bytes were taken, or (without write-behind) are being written: the other time-out's.
        const FileState state = job->states[i];
        const bool taking =
            state == FileState::kQueued || (state == FileState::kRunning &&
                                            (job->kind != JobKind::kStore || config_.write_behind));
        if (taking) files.push_back(i);
      }
    }
    GiveUp(lock, job, std::move(files), status);
  }
}

// Revokes first, settles afterwards: once a status is out, block memory is safe. A store whose
// bytes were taken in the meantime is not dropped for taking too long.
void EngineCore::GiveUp(EngineLock& lock, const std::shared_ptr<Job>& job,
                        std::vector<std::size_t> files, FileStatus status) {
  if (job == nullptr) return;
  if (IsTransfer(job->kind)) {
    lock.unlock();
    std::erase_if(files, [&](std::size_t i) {
      CopyGate& gate = job->transfers[i].gate;
      if (status == FileStatus::kDropped) return !gate.RevokeUnlessTaken();
      gate.Revoke();
      return false;
    });
    lock.lock();
  }
  for (const std::size_t i : files) jobs_.Settle(*job, i, {status, 0}, 0);
}

// For threads that hang, as many as may be replaced. Made without the lock, which poll() and
// submissions need: pinning memory takes milliseconds.
std::vector<Spare> EngineCore::MakeSpares(EngineLock& lock, TimePoint now) {
  std::vector<Spare> spares;
  for (const Role role : workers_.RolesToReplace(now)) {
    if (stopping_) break;  // Close does not wait for all of them
    lock.unlock();
    try {
      spares.push_back({role, MakeContext(role)});
    } catch (const std::exception&) {
      // No memory to be had: go on with fewer threads until the hung one comes back.
    }
    lock.lock();
  }
  return spares;
}

// What a thread had read of another job before it began to read what it reads now.
void EngineCore::EndCopies(EngineLock& lock, TimePoint now) {
  std::vector<WorkerRef> due;
  std::copy_if(workers_.all().begin(), workers_.all().end(), std::back_inserter(due),
               [&](const auto& worker) ENGINE_LOCKED { return worker->copying_until <= now; });
  for (const auto& worker : due) FinishCopying(lock, *worker);
}

void EngineCore::AbandonHung(EngineLock& lock, TimePoint now) {
  std::vector<Spare> spares = MakeSpares(lock, now);
  std::vector<TransferRef> stalled;
  bool hung = false;
  const std::vector<WorkerRef> before = workers_.all();  // Replace appends
  for (const WorkerRef& each : before) {
    Worker& worker = *each;
    if (!workers_.IsHung(worker, now)) continue;
    hung = true;
    workers_.Abandon(worker);
    if (worker.touching) {
      worker.touching = false;
      lookups_.EndTouches();
    }
    if (worker.loading != nullptr) stalled.push_back(worker.loading);
    const auto spare = std::find_if(spares.begin(), spares.end(),
                                    [&](const Spare& made) { return made.role == worker.role; });
    if (spare == spares.end() || stopping_) continue;
    workers_.Replace(spare->role, std::move(spare->context), Body());
    spares.erase(spare);
  }
  if (!spares.empty()) {  // for threads that have come back meanwhile
    lock.unlock();
    spares.clear();
    lock.lock();
  }
  if (!hung) return;
  // What such a thread had read before is on its way, and does not depend on storage any more.
  const std::vector<WorkerRef> workers = workers_.all();
  for (const auto& worker : workers) {
    if (worker->abandoned) FinishCopying(lock, *worker);
  }
  for (const TransferRef& file : stalled) {
    if (file->job->finished) continue;
    GiveUp(lock, JobOf(file), {file->index}, FileStatus::kTimedOut);
  }
  const TimePoint since = now - ToDuration(config_.load_stall_seconds);
  if (!workers_.AnybodyLoads()) {
    GiveUpLoadsBefore(lock, Clock::now());
  } else if (!stalled.empty() && workers_.NothingReadSince(since)) {
    GiveUpLoadsBefore(lock, since);
  }
}

// Storage gives nothing to anybody: those that wait for a thread would only wait longer.
void EngineCore::GiveUpLoadsBefore(EngineLock& lock, TimePoint submitted) {
  for (const auto& job : jobs_.All()) {
    if (job->kind != JobKind::kLoad || job->submitted > submitted) continue;
    std::vector<std::size_t> files;
    for (std::size_t i = 0; i < job->size(); ++i) {
      if (job->states[i] != FileState::kSettled) files.push_back(i);
    }
    GiveUp(lock, job, std::move(files), FileStatus::kTimedOut);
  }
}

void EngineCore::GiveUpAll(EngineLock& lock) {
  for (const auto& job : jobs_.All()) {
    std::vector<std::size_t> files;
    for (std::size_t i = 0; i < job->size(); ++i) {
      if (job->states[i] != FileState::kSettled) files.push_back(i);
    }
    GiveUp(lock, job, std::move(files), FileStatus::kCancelled);
  }
}

bool EngineCore::Close(double timeout_seconds) {
  const LockGuard close_lock(close_mutex_);
  const TimePoint deadline = Clock::now() + ToDuration(timeout_seconds);
  EngineLock lock(mutex_);
  closed_ = true;
  lookups_.DropTouches();
  for (const auto& job : jobs_.All()) jobs_.CancelQueued(*job);
  wake_.changed.wait_until(lock, deadline, [&]() ENGINE_LOCKED { return jobs_.AllFinished(); });
  GiveUpAll(lock);
  stopping_ = true;
  wake_.AllThreads();
  const auto all_exited = [&]()
                              ENGINE_LOCKED { return supervisor_exited_ && workers_.AllExited(); };
  wake_.changed.wait_until(lock, std::max(deadline, Clock::now() + kExitGrace), all_exited);
  if (supervisor_thread_.joinable()) {  // may be at a copy or an allocation that takes its time
    supervisor_exited_ ? supervisor_thread_.join() : supervisor_thread_.detach();
  }
  workers_.Reap(lock);
  workers_.Detach();  // they find their files given up when they come back
  // Temp files that no thread was left to remove; a cleaner does, once this process is gone.
  stores_.LeakLeftovers();
  return workers_.all().empty() && supervisor_exited_;
}

}  // namespace kvshelf
