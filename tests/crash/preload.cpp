// Put before the C library by LD_PRELOAD: counts the calls that touch files beneath a root, kills
// the process at one of them, and writes down what they did. Test-only; see writer.py.
//
// Matching calls run one at a time, so that their order in the trace is their order in the kernel.
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <mutex>
#include <string>
#include <vector>

namespace {

enum When { kBefore = 0, kAfter = 1, kTorn = 2 };
enum Faults { kNoRename2 = 1, kNoLink = 2 };

std::mutex mutex;
std::string root;  // empty: nothing is counted
long calls = 0;
long kill_at = 0;
int when = kBefore;
int faults = 0;
int trace = -1;

template <typename F>
F Real(const char* name) {
  return reinterpret_cast<F>(dlsym(RTLD_NEXT, name));
}
#define REAL(name) static auto* const real = Real<decltype(&::name)>(#name)

[[noreturn]] void Die() {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

std::string PathOfFd(int fd) {
  char link[64];
  char path[4096];
  snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
  const ssize_t size = readlink(link, path, sizeof(path));
  return size > 0 ? std::string(path, static_cast<size_t>(size)) : std::string();
}

std::string PathOf(int dir, const char* path) {
  if (path[0] == '/') return path;
  std::string folder = dir == AT_FDCWD ? std::string() : PathOfFd(dir);
  if (strcmp(path, ".") == 0) return folder;
  return folder + "/" + path;
}

// Relative to the root: "." itself; empty if it is elsewhere.
std::string Beneath(const std::string& path) {
  if (root.empty() || path.compare(0, root.size(), root) != 0) return {};
  if (path.size() == root.size()) return ".";
  return path[root.size()] == '/' ? path.substr(root.size() + 1) : std::string();
}

unsigned long long InodeOf(int fd) {
  struct stat found{};
  return fstat(fd, &found) == 0 ? found.st_ino : 0;
}

void Emit(const std::string& data) {
  static auto* const real = Real<ssize_t (*)(int, const void*, size_t)>("write");
  const char* at = data.data();
  for (size_t left = data.size(); left > 0;) {
    const ssize_t done = real(trace, at, left);
    if (done <= 0) abort();
    at += done;
    left -= static_cast<size_t>(done);
  }
}

// One line of words, then the data of a write.
void Record(std::string line, const std::string& data = {}) {
  if (trace >= 0) Emit(line + "\n" + data);
}

// `ours` says whether the call is counted; `record` runs after success; `torn` does half of it.
template <typename Call, typename Done, typename Torn>
auto Hook(bool ours, Call call, Done record, Torn torn) -> decltype(call()) {
  if (!ours) return call();
  std::lock_guard lock(mutex);
  const bool last = ++calls == kill_at;
  if (last && when == kTorn) torn();
  if (last && when != kAfter) Die();
  const auto result = call();
  const int error = errno;
  if (result >= 0) record(result);
  if (last) Die();
  errno = error;
  return result;
}
template <typename Call, typename Done>
auto Hook(bool ours, Call call, Done record) -> decltype(call()) {
  return Hook(ours, call, record, [] {});
}
const auto kNothing = [](auto) {};

template <typename Call>
auto Opening(int dir, const char* path, int flags, Call call) -> decltype(call()) {
  const std::string name = root.empty() ? std::string() : Beneath(PathOf(dir, path));
  return Hook(!name.empty(), call, [&](auto fd) {
    if ((flags & O_CREAT) == 0) return;
    Record("create " + name + " " + std::to_string(InodeOf(static_cast<int>(fd))));
  });
}

std::string Joined(const iovec* parts, int count, size_t bytes) {
  std::string data;
  for (int i = 0; i < count && data.size() < bytes; ++i) {
    const size_t left = bytes - data.size();
    data.append(static_cast<const char*>(parts[i].iov_base),
                parts[i].iov_len < left ? parts[i].iov_len : left);
  }
  return data;
}

template <typename Call>
ssize_t Writing(int fd, const iovec* parts, int count, off_t offset, Call call) {
  const bool ours = !root.empty() && !Beneath(PathOfFd(fd)).empty();
  const off_t at = ours && offset < 0 ? lseek(fd, 0, SEEK_CUR) : offset;
  return Hook(
      ours, call,
      [&](ssize_t done) {
        const std::string data = Joined(parts, count, static_cast<size_t>(done));
        Record("write " + std::to_string(InodeOf(fd)) + " " + std::to_string(at) + " " +
                   std::to_string(data.size()) + " " + std::to_string(calls),
               data);
      },
      [&] {
        static auto* const real = Real<ssize_t (*)(int, const void*, size_t, off_t)>("pwrite");
        const std::string data = Joined(parts, count, static_cast<size_t>(-1));
        // With O_DIRECT from unaligned memory this fails: then nothing of it is written.
        if (real(fd, data.data(), data.size() / 2, at) < 0) return;
      });
}

template <typename Call>
int OnFd(int fd, const std::string& words, Call call) {
  const std::string name = root.empty() ? std::string() : Beneath(PathOfFd(fd));
  return Hook(!name.empty(), call, [&](int) {
    struct stat found{};
    if (fstat(fd, &found) != 0) return;
    const bool folder = S_ISDIR(found.st_mode);
    Record((folder ? "syncdir " + name : words + " " + std::to_string(found.st_ino)));
  });
}

template <typename Call>
int OnPaths(const char* word, int dir, const char* path, int to_dir, const char* to, Call call) {
  const std::string name = root.empty() ? std::string() : Beneath(PathOf(dir, path));
  const std::string to_name = to == nullptr || name.empty() ? "" : Beneath(PathOf(to_dir, to));
  return Hook(!name.empty(), call, [&](int) {
    if (word != nullptr) Record(std::string(word) + " " + name + (to ? " " + to_name : ""));
  });
}
template <typename Call>
int OnPath(const char* word, int dir, const char* path, Call call) {
  return OnPaths(word, dir, path, 0, nullptr, call);
}

bool Refused(int fault, int dir, const char* path) {
  return (faults & fault) != 0 && !root.empty() && !Beneath(PathOf(dir, path)).empty();
}

}  // namespace

extern "C" {

// Counts from now on; `at` 0 kills never, `trace_fd` -1 writes nothing down.
void crash_arm(const char* path, long at, int kill_when, int with_faults, int trace_fd) {
  root = path;
  kill_at = at;
  when = kill_when;
  faults = with_faults;
  trace = trace_fd;
}
long crash_calls() { return calls; }
// What the process has been told by then, in the order of the trace.
void crash_mark(const char* words) {
  std::lock_guard lock(mutex);
  Record(std::string("mark ") + words);
}

#define OPEN(name)                                                               \
  int name(const char* path, int flags, ...) {                                   \
    va_list rest;                                                                \
    va_start(rest, flags);                                                       \
    const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(rest, mode_t) : 0;       \
    va_end(rest);                                                                \
    REAL(name);                                                                  \
    return Opening(AT_FDCWD, path, flags, [&] { return real(path, flags, mode); }); \
  }
OPEN(open)
OPEN(open64)
#define OPENAT(name)                                                             \
  int name(int dir, const char* path, int flags, ...) {                          \
    va_list rest;                                                                \
    va_start(rest, flags);                                                       \
    const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(rest, mode_t) : 0;       \
    va_end(rest);                                                                \
    REAL(name);                                                                  \
    return Opening(dir, path, flags, [&] { return real(dir, path, flags, mode); }); \
  }
OPENAT(openat)
OPENAT(openat64)

long syscall(long number, ...) noexcept {
  va_list rest;
  va_start(rest, number);
  long a[6];
  for (long& each : a) each = va_arg(rest, long);
  va_end(rest);
  REAL(syscall);
  const auto call = [&] { return real(number, a[0], a[1], a[2], a[3], a[4], a[5]); };
  if (number != SYS_openat2 || root.empty()) return call();
  const auto flags = static_cast<int>(reinterpret_cast<const open_how*>(a[2])->flags);
  return Opening(static_cast<int>(a[0]), reinterpret_cast<const char*>(a[1]), flags, call);
}

ssize_t write(int fd, const void* data, size_t bytes) {
  REAL(write);
  const iovec part{const_cast<void*>(data), bytes};
  return Writing(fd, &part, 1, -1, [&] { return real(fd, data, bytes); });
}
#define PWRITE(name, offset_type)                                                 \
  ssize_t name(int fd, const void* data, size_t bytes, offset_type offset) {      \
    REAL(name);                                                                   \
    const iovec part{const_cast<void*>(data), bytes};                             \
    return Writing(fd, &part, 1, offset, [&] { return real(fd, data, bytes, offset); }); \
  }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)
#define PWRITEV(name, offset_type)                                                \
  ssize_t name(int fd, const iovec* parts, int count, offset_type offset) {       \
    REAL(name);                                                                   \
    return Writing(fd, parts, count, offset, [&] { return real(fd, parts, count, offset); }); \
  }
PWRITEV(pwritev, off_t)
PWRITEV(pwritev64, off64_t)

int fsync(int fd) {
  REAL(fsync);
  return OnFd(fd, "sync", [&] { return real(fd); });
}
int fdatasync(int fd) {
  REAL(fdatasync);
  return OnFd(fd, "sync", [&] { return real(fd); });
}
int close(int fd) {
  REAL(close);
  const bool ours = !root.empty() && !Beneath(PathOfFd(fd)).empty();
  return Hook(ours, [&] { return real(fd); }, kNothing);
}
#define ALLOCATE(name, offset_type)                                               \
  int name(int fd, int mode, offset_type offset, offset_type bytes) {             \
    REAL(name);                                                                   \
    const bool ours = !root.empty() && !Beneath(PathOfFd(fd)).empty();            \
    return Hook(ours, [&] { return real(fd, mode, offset, bytes); }, [&](int) {   \
      Record("size " + std::to_string(InodeOf(fd)) + " " + std::to_string(offset + bytes)); \
    });                                                                           \
  }
ALLOCATE(fallocate, off_t)
ALLOCATE(fallocate64, off64_t)

int mkdir(const char* path, mode_t mode) noexcept {
  REAL(mkdir);
  return OnPath("mkdir", AT_FDCWD, path, [&] { return real(path, mode); });
}
int mkdirat(int dir, const char* path, mode_t mode) noexcept {
  REAL(mkdirat);
  return OnPath("mkdir", dir, path, [&] { return real(dir, path, mode); });
}
int chmod(const char* path, mode_t mode) noexcept {
  REAL(chmod);
  return OnPath(nullptr, AT_FDCWD, path, [&] { return real(path, mode); });
}
int unlink(const char* path) noexcept {
  REAL(unlink);
  return OnPath("unlink", AT_FDCWD, path, [&] { return real(path); });
}
int unlinkat(int dir, const char* path, int flags) noexcept {
  REAL(unlinkat);
  return OnPath("unlink", dir, path, [&] { return real(dir, path, flags); });
}
int rename(const char* path, const char* to) noexcept {
  REAL(rename);
  return OnPaths("rename", AT_FDCWD, path, AT_FDCWD, to, [&] { return real(path, to); });
}
int renameat(int dir, const char* path, int to_dir, const char* to) noexcept {
  REAL(renameat);
  return OnPaths("rename", dir, path, to_dir, to, [&] { return real(dir, path, to_dir, to); });
}
int renameat2(int dir, const char* path, int to_dir, const char* to, unsigned flags) noexcept {
  REAL(renameat2);
  const bool refused = Refused(kNoRename2, dir, path);
  const auto call = [&] {
    if (!refused) return real(dir, path, to_dir, to, flags);
    errno = EINVAL;
    return -1;
  };
  return OnPaths("rename", dir, path, to_dir, to, call);
}
int link(const char* path, const char* to) noexcept {
  REAL(link);
  const bool refused = Refused(kNoLink, AT_FDCWD, path);
  const auto call = [&] {
    if (!refused) return real(path, to);
    errno = EPERM;
    return -1;
  };
  return OnPaths("link", AT_FDCWD, path, AT_FDCWD, to, call);
}
int linkat(int dir, const char* path, int to_dir, const char* to, int flags) noexcept {
  REAL(linkat);
  const bool refused = Refused(kNoLink, dir, path);
  const auto call = [&] {
    if (!refused) return real(dir, path, to_dir, to, flags);
    errno = EPERM;
    return -1;
  };
  return OnPaths("link", dir, path, to_dir, to, call);
}
int utimensat(int dir, const char* path, const timespec times[2], int flags) noexcept {
  REAL(utimensat);
  return OnPath(nullptr, dir, path, [&] { return real(dir, path, times, flags); });
}
}  // extern "C"
