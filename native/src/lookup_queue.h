// Lookups and touches that wait for a lookup thread.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include "job.h"
#include "wakeups.h"

namespace kvshelf {

// A run of files of a job for one lookup thread: lookups, or whether stores exist already.
struct LookupRun {
  std::shared_ptr<Job> job;
  std::size_t begin = 0;
  std::size_t end = 0;
};

struct TouchRequest {
  std::string path;
  std::int64_t time_ns = 0;  // of the file system; 0: when it is done
  bool always = false;       // also if the last use is not old
};

// The engine's mutex guards it.
class LookupQueue {
 public:
  LookupQueue(const EngineConfig& config, Wakeups& wake);

  void Add(const std::shared_ptr<Job>& job) ENGINE_LOCKED;
  void AddTouches(std::vector<TouchRequest> touches) ENGINE_LOCKED;
  // Takes runs of which nothing is left to do off the front. `done` gets their jobs, of which these
  // may be the last references.
  void DropIdle(std::vector<std::shared_ptr<Job>>& done) ENGINE_LOCKED;
  void DropTouches() ENGINE_LOCKED { touches_.clear(); }

  // For lookup threads, which take lookups before touches.
  bool HasLookups() const ENGINE_LOCKED { return !runs_.empty(); }
  bool MayTouch() const ENGINE_LOCKED;
  void Wait(EngineLock& lock ENGINE_LOCKED);
  LookupRun PopRun() ENGINE_LOCKED;  // REQUIRES: HasLookups
  std::vector<TouchRequest> BeginTouches() ENGINE_LOCKED;
  // Of each thread that began: it is back, or given up.
  void EndTouches() ENGINE_LOCKED;
  void CountTouched(std::uint64_t files) ENGINE_LOCKED { touched_ += files; }

  bool IsTouching() const ENGINE_LOCKED { return !touches_.empty() || touching_ > 0; }
  void AddTo(EngineStats& stats) const ENGINE_LOCKED;

 private:
  void WakeOne() ENGINE_LOCKED;

  const std::size_t threads_;
  const std::size_t touches_max_;
  Wakeups& wake_;
  std::deque<LookupRun> runs_ ENGINE_GUARDED;
  std::deque<TouchRequest> touches_ ENGINE_GUARDED;
  std::size_t touching_ ENGINE_GUARDED = 0;  // threads
  std::size_t waiting_ ENGINE_GUARDED = 0;   // threads
  bool waking_ ENGINE_GUARDED = false;       // one of them was woken and is on its way
  std::uint64_t touched_ ENGINE_GUARDED = 0;
  std::uint64_t dropped_ ENGINE_GUARDED = 0;
};

}  // namespace kvshelf
