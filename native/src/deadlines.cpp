#include "deadlines.h"

#include <algorithm>

namespace kvshelf {

void Deadlines::Add(DeadlineKind kind, Deadline deadline) {
  const TimePoint time = deadline.time;
  KVSHELF_DCHECK(QueueOf(kind).empty() || QueueOf(kind).back().time <= time);
  QueueOf(kind).push_back(std::move(deadline));
  Arm(time);
}

void Deadlines::Arm(TimePoint time) {
  if (time >= wakes_at_) return;
  wakes_at_ = time;
  alarm_.notify_one();
}

// Of a finished job there is nothing to wait for.
TimePoint Deadlines::FrontOf(DeadlineKind kind) {
  std::deque<Deadline>& queue = QueueOf(kind);
  while (!queue.empty()) {
    const std::shared_ptr<Job> job = queue.front().job.lock();
    if (job != nullptr && !job->progress.finished) return queue.front().time;
    queue.pop_front();
  }
  return kNever;
}

std::optional<Deadline> Deadlines::PopOver(DeadlineKind kind, TimePoint now) {
  if (FrontOf(kind) > now) return std::nullopt;
  Deadline deadline = std::move(QueueOf(kind).front());
  QueueOf(kind).pop_front();
  return deadline;
}

TimePoint Deadlines::Next() {
  TimePoint next = kNever;
  for (const DeadlineKind kind : kDeadlineKinds) next = std::min(next, FrontOf(kind));
  return next;
}

void Deadlines::SleepUntil(EngineLock& lock, TimePoint time) {
  wakes_at_ = time;
  if (time == kNever) {
    alarm_.wait(lock);
  } else {
    alarm_.wait_until(lock, time);
  }
}

}  // namespace kvshelf
