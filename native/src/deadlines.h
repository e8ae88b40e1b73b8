// When the supervisor has to act.
#pragma once

#include <array>
#include <deque>
#include <memory>
#include <optional>

#include "job.h"

namespace kvshelf {

inline constexpr TimePoint kNever = TimePoint::max();

// What a deadline is for. All deadlines of one kind have the same time-out.
enum class DeadlineKind : std::uint8_t {
  kLoad,
  kLookup,
  kTake,     // of a store: for taking the bytes
  kPublish,  // of one file of a store, whose bytes were taken or whose writing began
};
inline constexpr std::array kDeadlineKinds = {DeadlineKind::kLoad, DeadlineKind::kLookup,
                                              DeadlineKind::kTake, DeadlineKind::kPublish};

struct Deadline {
  TimePoint time;
  std::weak_ptr<Job> job;
  std::size_t index = 0;  // of the file, for kPublish
};

// The engine's mutex guards it.
class Deadlines {
 public:
  // `alarm` wakes the supervisor when a deadline comes sooner than it sleeps.
  explicit Deadlines(Condition& alarm) : alarm_(alarm) {}

  // Calls come in the order of time, of each kind.
  void Add(DeadlineKind kind, Deadline deadline) ENGINE_LOCKED;
  // Lets the supervisor sleep no longer than this.
  void Arm(TimePoint time) ENGINE_LOCKED;

  // For the supervisor: the next deadline that is over, of jobs that are not finished.
  std::optional<Deadline> PopOver(DeadlineKind kind, TimePoint now) ENGINE_LOCKED;
  TimePoint Next() ENGINE_LOCKED;
  void SleepUntil(EngineLock& lock ENGINE_LOCKED, TimePoint time);

 private:
  std::deque<Deadline>& QueueOf(DeadlineKind kind) ENGINE_LOCKED {
    return queues_[static_cast<std::size_t>(kind)];
  }
  TimePoint FrontOf(DeadlineKind kind) ENGINE_LOCKED;

  std::array<std::deque<Deadline>, kDeadlineKinds.size()> queues_ ENGINE_GUARDED;
  TimePoint wakes_at_ ENGINE_GUARDED = kNever;
  Condition& alarm_;
};

}  // namespace kvshelf
