// When a chunk file was last used, told from its times, and the clock by which ages count.
// docs/layout.md ("Times of a chunk file") is the contract; src/kvshelf/disk/usetime.py does the
// same.
#pragma once

#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <ctime>
#include <limits>

namespace kvshelf {

inline constexpr std::int64_t kNsPerSecond = 1'000'000'000;
// Storing takes a moment; only a use that comes later than this counts as one.
inline constexpr std::int64_t kReuse = kNsPerSecond;
// A touch is written so soon after the use. What changes a file later (chmod, a hard link) may do
// so after a reader.
inline constexpr std::int64_t kTouchDelay = 60 * kNsPerSecond;

// File systems hold years beyond 2262, where nanoseconds end. Ages are differences: room for these.
inline std::int64_t Nanoseconds(const timespec& time) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max() / kNsPerSecond - 1;
  return std::clamp<std::int64_t>(time.tv_sec, -kMost / 4, kMost) * kNsPerSecond + time.tv_nsec;
}

inline std::int64_t ClockNs(clockid_t clock) {
  timespec now{};
  ::clock_gettime(clock, &now);
  return Nanoseconds(now);
}

// A touch sets the modification time, which no reader changes. Its nanoseconds within the
// millisecond say whether the chunk was used again since it was stored.
inline constexpr std::int64_t kMarkUnit = 1'000'000;
inline constexpr std::int64_t kMarkStored = 173'000;
inline constexpr std::int64_t kMarkReused = 619'000;

inline std::int64_t WithinUnit(std::int64_t ns) { return (ns % kMarkUnit + kMarkUnit) % kMarkUnit; }
inline std::int64_t Marked(std::int64_t ns, bool reused) {
  return ns - WithinUnit(ns) + (reused ? kMarkReused : kMarkStored);
}

struct UseTime {
  std::int64_t ns = 0;
  bool reused = false;
};

// The change time is the witness: utimensat(2) sets it to now, and a read leaves it alone. An
// access time behind it was set by a touch of an older kvshelf, a moment before; one ahead of it
// comes from a reader. No use is later than the change time, which the file system's clock sets.
inline UseTime LastUse(const struct stat& file) {
  const std::int64_t accessed = Nanoseconds(file.st_atim);
  const std::int64_t modified = Nanoseconds(file.st_mtim);
  const std::int64_t changed = Nanoseconds(file.st_ctim);
  UseTime use{modified, false};
  if (const std::int64_t mark = WithinUnit(modified); mark == kMarkStored || mark == kMarkReused) {
    use.reused = mark == kMarkReused;
    if (modified < accessed && accessed < changed && changed - accessed < kTouchDelay) {
      use = {accessed, true};
    }
  } else {
    // A touch came before the change time, but for the error of its clock. Times of whole seconds
    // leave no room for that: a reader's may be the same.
    const bool coarse = file.st_atim.tv_nsec == 0 && file.st_ctim.tv_nsec == 0;
    if (accessed < (coarse ? changed : changed + kReuse)) use.ns = accessed;
    use.reused = use.ns > modified + kReuse;
  }
  // Kernels stamp files with the time of their last tick: a touch may be ahead of that, a little.
  if (changed > 0 && use.ns > changed + kReuse) use.ns = changed;
  return use;
}

// The file system's clock, as somebody has measured it; until then this machine's. Any thread.
class FileClock {
 public:
  // `ahead_ns`: of CLOCK_BOOTTIME, which nobody sets while it runs.
  void Set(std::int64_t ahead_ns) { ahead_ns_ = ahead_ns; }
  std::int64_t Now() const {
    const std::int64_t ahead = ahead_ns_;
    return ahead == kUnset ? ClockNs(CLOCK_REALTIME) : ClockNs(CLOCK_BOOTTIME) + ahead;
  }
  // What to add to a time by CLOCK_REALTIME as that is now. Whole milliseconds: the times of one
  // request come in several calls, and keep their distances.
  std::int64_t AheadOfRealtime() const {
    const std::int64_t ahead = Now() - ClockNs(CLOCK_REALTIME) + kMarkUnit / 2;
    return ahead - WithinUnit(ahead);
  }

 private:
  static constexpr std::int64_t kUnset = std::numeric_limits<std::int64_t>::min();
  std::atomic<std::int64_t> ahead_ns_{kUnset};
};

}  // namespace kvshelf
