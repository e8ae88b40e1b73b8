// The engine's mutex, as all of its parts and clang know it.
#pragma once

#include <condition_variable>
#include <mutex>

#include "kvshelf/config.h"
#include "kvshelf/dcheck.h"
#include "kvshelf/thread_safety.h"

namespace kvshelf {

// What "guarded by the engine's mutex" means in jobs, workers and queues, which do not know their
// engine. One name for the mutexes of all engines: no code handles two engines.
struct KVSHELF_CAPABILITY("mutex") EngineMutex {};
inline EngineMutex engine_mutex;

// Of functions: call it with the mutex held. Of a parameter that is an EngineLock: likewise, and
// the function may let go of the mutex for a while.
#define ENGINE_LOCKED KVSHELF_REQUIRES(engine_mutex)
// Of data: use it with the mutex held.
#define ENGINE_GUARDED KVSHELF_GUARDED_BY(engine_mutex)

class KVSHELF_SCOPED_CAPABILITY EngineLock {
 public:
  explicit EngineLock(std::mutex& mutex) KVSHELF_ACQUIRE(engine_mutex) : lock_(mutex) { Count(1); }
  ~EngineLock() KVSHELF_RELEASE() { Count(lock_.owns_lock() ? -1 : 0); }
  EngineLock(const EngineLock&) = delete;
  EngineLock& operator=(const EngineLock&) = delete;

  void lock() KVSHELF_ACQUIRE() {
    lock_.lock();
    Count(1);
  }
  void unlock() KVSHELF_RELEASE() {
    lock_.unlock();
    Count(-1);
  }

  // Whether this thread holds the mutex of its engine: for KVSHELF_DCHECK alone.
  static bool IsHeld() { return Held() == 1; }

 private:
  friend class Condition;

  static int& Held() {
    thread_local int held = 0;
    return held;
  }
  static void Count([[maybe_unused]] int change) {
#if defined(KVSHELF_DCHECKS)
    Held() += change;
#endif
  }

  std::unique_lock<std::mutex> lock_;
};

// A condition variable beside the engine's mutex.
class Condition {
 public:
  void notify_one() { condition_.notify_one(); }
  void notify_all() { condition_.notify_all(); }

  void wait(EngineLock& lock ENGINE_LOCKED) { condition_.wait(lock.lock_); }
  void wait_until(EngineLock& lock ENGINE_LOCKED, TimePoint time) {
    condition_.wait_until(lock.lock_, time);
  }
  template <typename Holds>
  void wait(EngineLock& lock ENGINE_LOCKED, Holds&& holds) {
    condition_.wait(lock.lock_, holds);
  }
  // Whether it holds, at the latest at `time`.
  template <typename Holds>
  bool wait_until(EngineLock& lock ENGINE_LOCKED, TimePoint time, Holds&& holds) {
    return condition_.wait_until(lock.lock_, time, holds);
  }

 private:
  std::condition_variable condition_;
};

}  // namespace kvshelf
