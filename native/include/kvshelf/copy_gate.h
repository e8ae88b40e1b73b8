// The gate between a file's I/O and the caller's block memory.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "kvshelf/device.h"
#include "kvshelf/thread_safety.h"

namespace kvshelf {

// A thread touches block memory only inside the gate of its file, and never does I/O in there. So
// whoever gives a file up (time-out, release, close) revokes its gate, which waits at most for one
// memory copy of each thread, and from then on nothing of that file touches block memory or is
// published, however late a hung system call returns. Threads with parts of one file are in there
// together.
class CopyGate {
 public:
  // Runs `work`, which reads or writes block memory and does no I/O; false if it returned false or
  // the gate is revoked.
  template <typename Work>
  bool Run(Work&& work) {
    const SharedLockGuard lock(mutex_);
    return !revoked_.load(std::memory_order_relaxed) && work();
  }

  // The same for `begin_copy`, which begins copies on `stream`.
  template <typename BeginCopy>
  bool Copy(const std::shared_ptr<CopyStream>& stream, BeginCopy&& begin_copy) {
    return Run([&] {
      const bool begun = begin_copy(*stream);
      Remember(stream);  // also after a failure: part of a copy may be under way
      return begun;
    });
  }

  // Waits for the copies begun; false if one failed or the gate is revoked. With `taken`, block
  // memory is needed no more from now on.
  bool Finish(bool taken = false) {
    const LockGuard lock(mutex_);
    const bool copied = Wait() && !revoked_.load(std::memory_order_relaxed);
    taken_ |= copied && taken;
    return copied;
  }

  // Waits for the copies begun and lets no more begin. True for the first who does.
  bool Revoke() {
    // Before it waits: else those in there could hand the lock to each other for ever.
    const bool first = !revoked_.exchange(true, std::memory_order_acq_rel);
    const LockGuard lock(mutex_);
    Wait();
    return first;
  }

  // Likewise, unless block memory is needed no more anyway; then false.
  bool RevokeUnlessTaken() {
    const LockGuard lock(mutex_);
    if (taken_) return false;
    revoked_.store(true, std::memory_order_release);
    Wait();
    return true;
  }

  // False if revoked. Else the caller may give the file its final name.
  bool ClaimPublication() {
    const LockGuard lock(mutex_);
    if (revoked_.load(std::memory_order_relaxed)) return false;
    taken_ = true;
    return true;
  }

  // A hint to stop early; only the calls above are binding.
  bool revoked() const { return revoked_.load(std::memory_order_acquire); }

 private:
  // Copies of this file on one stream: the first `copies` of it are to be waited for.
  struct Begun {
    std::shared_ptr<CopyStream> stream;
    std::uint64_t copies;
  };

  void Remember(const std::shared_ptr<CopyStream>& stream) {
    const LockGuard lock(begun_mutex_);
    for (Begun& begun : begun_) {
      if (begun.stream == stream) {
        begun.copies = stream->begun();
        return;
      }
    }
    begun_.push_back({stream, stream->begun()});
  }

  // While nobody else is in there, so begun_ is the caller's.
  bool Wait() KVSHELF_REQUIRES(mutex_) KVSHELF_UNCHECKED_LOCKING {
    bool copied = true;
    for (const Begun& begun : begun_) copied &= begun.stream->WaitFor(begun.copies);
    begun_.clear();
    return copied;
  }

  // Shared by those who use block memory; alone: taken_, and whoever lets nobody in any more.
  SharedMutex mutex_;
  Mutex begun_mutex_;  // of those in there
  // One for each thread that has copied a part of this file.
  std::vector<Begun> begun_ KVSHELF_GUARDED_BY(begun_mutex_);
  bool taken_ KVSHELF_GUARDED_BY(mutex_) = false;
  std::atomic<bool> revoked_{false};
};

}  // namespace kvshelf
