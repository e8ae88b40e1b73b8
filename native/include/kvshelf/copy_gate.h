// The gate between a file's I/O and the caller's block memory.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>

#include "kvshelf/device.h"

namespace kvshelf {

// A thread touches block memory only inside the gate of its file, and never does I/O in there. So
// whoever gives a file up (time-out, release, close) revokes its gate, which waits at most for one
// memory copy, and from then on nothing of that file touches block memory or is published,
// however late a hung system call returns.
class CopyGate {
 public:
  // Runs `begin_copy`, which begins copies on `stream`; false if it failed or the gate is revoked.
  template <typename BeginCopy>
  bool Copy(const std::shared_ptr<CopyStream>& stream, BeginCopy&& begin_copy) {
    std::lock_guard lock(mutex_);
    if (revoked_.load(std::memory_order_relaxed)) return false;
    stream_ = stream;
    return begin_copy(*stream);
  }

  // Waits for the copies begun; false if one failed or the gate is revoked.
  bool Finish() {
    std::lock_guard lock(mutex_);
    const bool copied = stream_ == nullptr || stream_->Wait();
    stream_.reset();
    return copied && !revoked_.load(std::memory_order_relaxed);
  }

  // Waits for the copies begun and lets no more begin.
  void Revoke() {
    std::lock_guard lock(mutex_);
    revoked_.store(true, std::memory_order_release);
    if (stream_ != nullptr) stream_->Wait();
    stream_.reset();
  }

  // True once, if not revoked before: the caller may give the file its final name.
  bool ClaimPublication() {
    std::lock_guard lock(mutex_);
    if (revoked_.load(std::memory_order_relaxed)) return false;
    claimed_ = true;
    return true;
  }

  // Revokes unless publication was claimed, in which case block memory is needed no more anyway.
  bool RevokeUnlessClaimed() {
    std::lock_guard lock(mutex_);
    if (claimed_) return false;
    revoked_.store(true, std::memory_order_release);
    if (stream_ != nullptr) stream_->Wait();
    stream_.reset();
    return true;
  }

  // A hint to stop early; only the calls above are binding.
  bool revoked() const { return revoked_.load(std::memory_order_acquire); }

 private:
  std::mutex mutex_;  // guards stream_ and claimed_, and is held during host copies
  std::shared_ptr<CopyStream> stream_;
  bool claimed_ = false;
  std::atomic<bool> revoked_{false};
};

}  // namespace kvshelf
