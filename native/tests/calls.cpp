#include "calls.h"

#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace kvshelf::testing {

Calls& TheCalls() {
  static Calls calls;
  return calls;
}

namespace {

template <typename Function>
Function Next(const char* name) {
  return reinterpret_cast<Function>(::dlsym(RTLD_NEXT, name));
}
#define REAL(name) static const auto real = Next<decltype(&::name)>(#name)

// Sets errno and says whether the call fails.
bool Fails(FailingCall& call) {
  const int error = call.Ask();
  if (error != 0) errno = error;
  return error != 0;
}

}  // namespace
}  // namespace kvshelf::testing

using kvshelf::testing::Fails;
using kvshelf::testing::Next;
using kvshelf::testing::TheCalls;

extern "C" {

void* dlopen(const char* name, int flags) noexcept {
  REAL(dlopen);
  const bool watched = name != nullptr && std::strstr(name, "libcrypto") != nullptr;
  return watched && Fails(TheCalls().open_library) ? nullptr : real(name, flags);
}

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*run)(void*),
                   void* argument) noexcept {
  REAL(pthread_create);
  const int error = TheCalls().make_thread.Ask();
  return error != 0 ? error : real(thread, attributes, run, argument);
}

int posix_memalign(void** memory, std::size_t alignment, std::size_t bytes) noexcept {
  REAL(posix_memalign);
  const int error = TheCalls().aligned_memory.Ask();
  return error != 0 ? error : real(memory, alignment, bytes);
}

long syscall(long number, ...) noexcept {
  REAL(syscall);
  va_list list;
  va_start(list, number);
  long a[6];
  for (long& each : a) each = va_arg(list, long);
  va_end(list);
  if (number == SYS_openat2) {
    // The first field of struct open_how is the flags.
    const auto flags = *reinterpret_cast<const std::uint64_t*>(a[2]);
    if ((flags & O_NOATIME) != 0 && Fails(TheCalls().open_unseen)) return -1;
    if (Fails(TheCalls().open_beneath)) return -1;
  }
  return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

int openat(int folder, const char* path, int flags, ...) {
  REAL(openat);
  va_list list;
  va_start(list, flags);
  const mode_t mode = va_arg(list, mode_t);
  va_end(list);
  if ((flags & O_NOATIME) != 0 && Fails(TheCalls().open_unseen)) return -1;
  return real(folder, path, flags, mode);
}

ssize_t pread(int fd, void* data, std::size_t bytes, off_t offset) {
  REAL(pread);
  return Fails(TheCalls().read) ? -1 : real(fd, data, bytes, offset);
}

int close(int fd) {
  REAL(close);
  const int result = real(fd);
  return fd == TheCalls().closing && Fails(TheCalls().close) ? -1 : result;
}

ssize_t getdents64(int fd, void* buffer, std::size_t bytes) noexcept {
  REAL(getdents64);
  return Fails(TheCalls().list) ? -1 : real(fd, buffer, bytes);
}

}  // extern "C"
