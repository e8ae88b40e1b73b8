// System calls of this program that fail on demand: calls.cpp defines them in front of libc's. For
// what FileOps does not pass on, and for FileOps' own use of the system.
#pragma once

#include <atomic>

namespace kvshelf::testing {

// A call that fails `times` times with `error`, after `pass` more that do not. It counts, once it
// is armed, how often it was asked.
class FailingCall {
 public:
  void Arm(int error, int times, int pass = 0) {
    error_ = error;
    pass_ = pass;
    asked_ = 0;
    times_ = times;
  }
  void Disarm() { times_ = 0; }
  int asked() const { return asked_; }
  // The error to fail with, or 0.
  int Ask() {
    ++asked_;
    if (times_ <= 0 || pass_.fetch_sub(1) > 0) return 0;
    return times_.fetch_sub(1) > 0 ? error_.load() : 0;
  }

 private:
  std::atomic<int> error_{0}, pass_{0}, times_{0}, asked_{0};
};

struct Calls {
  FailingCall open_library;    // dlopen of libcrypto
  FailingCall make_thread;     // pthread_create
  FailingCall aligned_memory;  // posix_memalign
  FailingCall open_beneath;    // openat2
  FailingCall open_unseen;     // openat and openat2 with O_NOATIME
  FailingCall read;            // pread
  FailingCall close;           // of `closing`; it fails once the descriptor is closed, as in Linux
  FailingCall list;            // getdents64
  std::atomic<int> closing{-1};
};

// This program's.
Calls& TheCalls();

}  // namespace kvshelf::testing
