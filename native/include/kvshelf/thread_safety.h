// Which lock guards what, in words that clang checks (-Wthread-safety, in make lint): see "Thread
// Safety Analysis" in clang's documentation. Other compilers see nothing.
#pragma once

#include <mutex>
#include <shared_mutex>

#if defined(__clang__)
#define KVSHELF_THREAD_ATTRIBUTE(x) __attribute__((x))
#else
#define KVSHELF_THREAD_ATTRIBUTE(x)
#endif

// Of classes: a lock, and an object that holds a lock while it lives.
#define KVSHELF_CAPABILITY(name) KVSHELF_THREAD_ATTRIBUTE(capability(name))
#define KVSHELF_SCOPED_CAPABILITY KVSHELF_THREAD_ATTRIBUTE(scoped_lockable)
// Of data: use it only while holding the lock.
#define KVSHELF_GUARDED_BY(lock) KVSHELF_THREAD_ATTRIBUTE(guarded_by(lock))
// Of functions: call it only while holding the lock, or only while not holding it. REQUIRES of a
// parameter that is a scoped lock: likewise, and the function may let go of it for a while.
#define KVSHELF_REQUIRES(...) KVSHELF_THREAD_ATTRIBUTE(requires_capability(__VA_ARGS__))
#define KVSHELF_EXCLUDES(...) KVSHELF_THREAD_ATTRIBUTE(locks_excluded(__VA_ARGS__))
// Of functions that take and release.
#define KVSHELF_ACQUIRE(...) KVSHELF_THREAD_ATTRIBUTE(acquire_capability(__VA_ARGS__))
#define KVSHELF_ACQUIRE_SHARED(...) KVSHELF_THREAD_ATTRIBUTE(acquire_shared_capability(__VA_ARGS__))
#define KVSHELF_RELEASE(...) KVSHELF_THREAD_ATTRIBUTE(release_capability(__VA_ARGS__))
// Of functions whose locking clang cannot follow; a comment says why it is right.
#define KVSHELF_UNCHECKED_LOCKING KVSHELF_THREAD_ATTRIBUTE(no_thread_safety_analysis)

namespace kvshelf {

// The standard library's locks, which carry no annotations.
class KVSHELF_CAPABILITY("mutex") Mutex {
 public:
  void lock() KVSHELF_ACQUIRE() { mutex_.lock(); }
  void unlock() KVSHELF_RELEASE() { mutex_.unlock(); }

 private:
  std::mutex mutex_;
};

class KVSHELF_CAPABILITY("mutex") SharedMutex {
 public:
  void lock() KVSHELF_ACQUIRE() { mutex_.lock(); }
  void unlock() KVSHELF_RELEASE() { mutex_.unlock(); }
  void lock_shared() KVSHELF_ACQUIRE_SHARED() { mutex_.lock_shared(); }
  void unlock_shared() KVSHELF_THREAD_ATTRIBUTE(release_shared_capability()) {
    mutex_.unlock_shared();
  }

 private:
  std::shared_mutex mutex_;
};

// Holds a lock, alone or with others, until the end of its scope.
template <typename AnyMutex>
class KVSHELF_SCOPED_CAPABILITY LockGuard {
 public:
  explicit LockGuard(AnyMutex& mutex) KVSHELF_ACQUIRE(mutex) : mutex_(mutex) { mutex_.lock(); }
  ~LockGuard() KVSHELF_RELEASE() { mutex_.unlock(); }
  LockGuard(const LockGuard&) = delete;
  LockGuard& operator=(const LockGuard&) = delete;

 private:
  AnyMutex& mutex_;
};

class KVSHELF_SCOPED_CAPABILITY SharedLockGuard {
 public:
  explicit SharedLockGuard(SharedMutex& mutex) KVSHELF_ACQUIRE_SHARED(mutex) : mutex_(mutex) {
    mutex_.lock_shared();
  }
  ~SharedLockGuard() KVSHELF_RELEASE() { mutex_.unlock_shared(); }
  SharedLockGuard(const SharedLockGuard&) = delete;
  SharedLockGuard& operator=(const SharedLockGuard&) = delete;

 private:
  SharedMutex& mutex_;
};

}  // namespace kvshelf
