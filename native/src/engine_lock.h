// The engine's mutex, as all of its parts and clang know it.
#pragma once

#include <condition_variable>
#include <mutex>

#include "kvshelf/config.h"
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
  explicit EngineLock(std::mutex& mutex) KVSHELF_ACQUIRE(engine_mutex) : lock_(mutex) {}
  ~EngineLock() KVSHELF_RELEASE() {}
  EngineLock(const EngineLock&) = delete;
  EngineLock& operator=(const EngineLock&) = delete;

  void lock() KVSHELF_ACQUIRE() { lock_.lock(); }
  void unlock() KVSHELF_RELEASE() { lock_.unlock(); }

 private:
  friend class Condition;
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
