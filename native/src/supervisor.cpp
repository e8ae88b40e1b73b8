#include "supervisor.h"

#include <algorithm>
#include <iterator>

namespace kvshelf {

// Sleeps until the next deadline, and for ever while nothing is under way.
void Supervisor::Run(EngineLock& lock) {
  while (!parts_.stopping) {
    const TimePoint now = Clock::now();
    for (const DeadlineKind kind : kDeadlineKinds) Expire(lock, kind, now);
    EndCopies(lock, now);
    AbandonHung(lock, now);
    parts_.workers.Reap(lock);
    if (parts_.stopping) break;
    parts_.deadlines.SleepUntil(lock,
                                std::min(parts_.deadlines.Next(), parts_.workers.NextDeadline()));
  }
}

void Supervisor::Expire(EngineLock& lock, DeadlineKind kind, TimePoint now) {
  const FileStatus status =
      kind == DeadlineKind::kTake ? FileStatus::kDropped : FileStatus::kTimedOut;
  while (const auto deadline = parts_.deadlines.PopOver(kind, now)) {
    const std::shared_ptr<Job> job = deadline->job.lock();
    if (job == nullptr) continue;
    std::vector<std::size_t> files;
    if (kind == DeadlineKind::kPublish) {
      files.push_back(deadline->index);
    } else {
      for (std::size_t i = 0; i < job->size(); ++i) {
        // Bytes were taken, or (without write-behind) are being written: the other time-out's.
        const FileState state = job->progress.states[i];
        const bool taking = state == FileState::kQueued ||
                            (state == FileState::kRunning &&
                             (job->kind != JobKind::kStore || parts_.basis.config.write_behind));
        if (taking) files.push_back(i);
      }
    }
    parts_.jobs.GiveUp(lock, job, std::move(files), status);
  }
}

// For threads that hang, as many as may be replaced. Made without the lock, which poll() and
// submissions need: pinning memory takes milliseconds.
std::vector<Supervisor::Spare> Supervisor::MakeSpares(EngineLock& lock, TimePoint now) {
  std::vector<Spare> spares;
  for (const Role role : parts_.workers.RolesToReplace(now)) {
    if (parts_.stopping) break;  // Close does not wait for all of them
    lock.unlock();
    try {
      spares.push_back({role, parts_.workers.MakeContext(role)});
    } catch (const std::exception&) {
      // No memory to be had: go on with fewer threads until the hung one comes back.
    }
    lock.lock();
  }
  return spares;
}

// What a thread had read of another job before it began to read what it reads now.
void Supervisor::EndCopies(EngineLock& lock, TimePoint now) {
  std::vector<WorkerRef> due;
  std::copy_if(parts_.workers.all().begin(), parts_.workers.all().end(), std::back_inserter(due),
               [&](const auto& worker) ENGINE_LOCKED { return worker->copying_until <= now; });
  for (const auto& worker : due) loads_.FinishCopying(lock, *worker);
}

void Supervisor::AbandonHung(EngineLock& lock, TimePoint now) {
  std::vector<Spare> spares = MakeSpares(lock, now);
  std::vector<std::shared_ptr<Transfer>> stalled;
  bool hung = false;
  const std::vector<WorkerRef> before = parts_.workers.all();  // Replace appends
  for (const WorkerRef& each : before) {
    Worker& worker = *each;
    if (!parts_.workers.IsHung(worker, now)) continue;
    hung = true;
    parts_.workers.Abandon(worker);
    if (worker.touching) {
      worker.touching = false;
      parts_.lookups.EndTouches();
    }
    if (worker.loading != nullptr) stalled.push_back(worker.loading);
    const auto spare = std::find_if(spares.begin(), spares.end(),
                                    [&](const Spare& made) { return made.role == worker.role; });
    if (spare == spares.end() || parts_.stopping) continue;
    parts_.workers.Replace(spare->role, std::move(spare->context), body_);
    spares.erase(spare);
  }
  if (!spares.empty()) {  // for threads that have come back meanwhile
    lock.unlock();
    spares.clear();
    lock.lock();
  }
  if (!hung) return;
  // What such a thread had read before is on its way, and does not depend on storage any more.
  const std::vector<WorkerRef> workers = parts_.workers.all();
  for (const auto& worker : workers) {
    if (worker->abandoned) loads_.FinishCopying(lock, *worker);
  }
  for (const std::shared_ptr<Transfer>& file : stalled) {
    if (file->job->progress.finished) continue;
    parts_.jobs.GiveUp(lock, JobOf(file), {file->index}, FileStatus::kTimedOut);
  }
  const TimePoint since = now - ToDuration(parts_.basis.config.load_stall_seconds);
  if (!parts_.workers.AnybodyLoads()) {
    GiveUpLoadsBefore(lock, Clock::now());
  } else if (!stalled.empty() && parts_.workers.NothingReadSince(since)) {
    GiveUpLoadsBefore(lock, since);
  }
}

// Storage gives nothing to anybody: those that wait for a thread would only wait longer.
void Supervisor::GiveUpLoadsBefore(EngineLock& lock, TimePoint submitted) {
  for (const auto& job : parts_.jobs.All()) {
    if (job->kind != JobKind::kLoad || job->submitted > submitted) continue;
    parts_.jobs.GiveUpUnsettled(lock, job, FileStatus::kTimedOut);
  }
}

}  // namespace kvshelf
