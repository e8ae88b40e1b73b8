#include "lookup_queue.h"

#include <algorithm>

namespace kvshelf {
namespace {

// A run of lookups is one hand-over: long enough that the mutex does not matter, short enough that
// a few thousand keys occupy all threads.
constexpr std::size_t kLookupRun = 32;
// Small, so that a lookup that comes meanwhile waits little.
constexpr std::size_t kTouchRun = 8;

}  // namespace

LookupQueue::LookupQueue(const EngineConfig& config, Wakeups& wake)
    : threads_(static_cast<std::size_t>(config.lookup_threads)),
      touches_max_(config.touch_queue_files),
      wake_(wake) {}

void LookupQueue::Add(const std::shared_ptr<Job>& job) {
  // A probe of a file reads: one file a thread.
  const std::size_t longest = job->kind == JobKind::kProbe ? 1 : kLookupRun;
  const std::size_t run = std::clamp<std::size_t>(job->size() / (4 * threads_), 1, longest);
  for (std::size_t begin = 0; begin < job->size(); begin += run) {
    runs_.push_back({job, begin, std::min(begin + run, job->size())});
  }
  WakeOne();
}

void LookupQueue::AddTouches(std::vector<TouchRequest> touches) {
  for (TouchRequest& touch : touches) {
    if (touches_.size() < touches_max_) {
      touches_.push_back(std::move(touch));
    } else {
      ++dropped_;
    }
  }
  WakeOne();
}

// While all lookup threads hang nobody else does, and jobs that were given up would pile up.
void LookupQueue::DropIdle(std::vector<std::shared_ptr<Job>>& done) {
  const auto is_idle = [](const LookupRun& run) ENGINE_LOCKED {
    return std::none_of(run.job->progress.states.begin() + static_cast<std::ptrdiff_t>(run.begin),
                        run.job->progress.states.begin() + static_cast<std::ptrdiff_t>(run.end),
                        [](FileState state) { return state == FileState::kQueued; });
  };
  while (!runs_.empty() && is_idle(runs_.front())) {
    done.push_back(std::move(runs_.front().job));
    runs_.pop_front();
  }
}

// Half of the threads at most, so that lookups find one free.
bool LookupQueue::MayTouch() const {
  return !touches_.empty() && touching_ < std::max<std::size_t>(1, threads_ / 2);
}

// Whoever takes some of the work and leaves some wakes one more thread, unless one is on its way.
// So storage that answers at once is asked by few threads, which would only be in each other's
// way, and slow storage soon by all.
void LookupQueue::WakeOne() {
  if (waiting_ == 0 || waking_) return;
  waking_ = true;
  wake_.meta.notify_one();
}

void LookupQueue::Wait(EngineLock& lock) {
  ++waiting_;
  wake_.meta.wait(lock);
  --waiting_;
  waking_ = false;
}

LookupRun LookupQueue::PopRun() {
  KVSHELF_DCHECK(!runs_.empty());
  LookupRun run = std::move(runs_.front());
  runs_.pop_front();
  if (!runs_.empty()) WakeOne();
  return run;
}

std::vector<TouchRequest> LookupQueue::BeginTouches() {
  KVSHELF_DCHECK(MayTouch());
  std::vector<TouchRequest> touches;
  while (!touches_.empty() && touches.size() < kTouchRun) {
    touches.push_back(std::move(touches_.front()));
    touches_.pop_front();
  }
  ++touching_;
  if (MayTouch()) WakeOne();
  return touches;
}

void LookupQueue::EndTouches() {
  KVSHELF_DCHECK(touching_ > 0);
  --touching_;
  wake_.changed.notify_all();
}

void LookupQueue::AddTo(EngineStats& stats) const {
  stats.queued_touches = touches_.size();
  stats.touched = touched_;
  stats.touches_dropped = dropped_;
}

}  // namespace kvshelf
