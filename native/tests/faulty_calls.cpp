// A library to preload (LD_PRELOAD) into a process with an unchanged kvshelf: system calls that the
// engine's threads make fail, hang or lie by rules, which stand in a file that whoever maps it may
// change at any time. Built and steered by tests/harness/faulty_calls.py, which says what a rule
// means and has the same layout of Control. Calls of all other threads are left alone.
#include <dlfcn.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>
#include <string_view>
#include <vector>

namespace {

enum Op : std::uint32_t {
  kOpen,
  kStat,
  kFstat,
  kRead,
  kWrite,
  kAllocate,
  kFsync,
  kRename,  // renameat2
  kLink,
  kPlainRename,
  kMkdir,
  kUnlink,
  kUtimens,
  kClose,
  kOps
};
enum Action : std::uint32_t {
  kNone,
  kError,
  kErrorAfter,
  kShort,
  kFlip,
  kTorn,
  kSwap,
  kHang,
  kHangAfter
};

constexpr std::size_t kRules = 32, kCounters = 8192;

struct Rule {
  std::uint32_t active, op, action;
  std::int32_t error;
  std::uint32_t skip, count;        // matching calls let pass first, then hit (0: all)
  std::uint32_t probability, seed;  // of 2^32 - 1
  std::uint32_t hold;               // a hang lasts while this is not 0
  std::uint32_t matched, injected, waiting;
  std::int64_t begin, end;  // offsets of a read or write
  char role[16], pattern[240], other[240];
};
struct Control {
  std::uint32_t size, root_chars;  // chars of the shelf's root: left out of what decides
  std::uint64_t trace;             // sum of the hashes of all that was injected
  std::uint64_t calls[kOps];       // of the engine's threads, under the root
  Rule rules[kRules];
  std::uint32_t counters[kCounters];  // by rule, role and path: how many calls were asked about
};

Control* control = nullptr;

template <typename Function>
Function Next(const char* name) {
  return reinterpret_cast<Function>(::dlsym(RTLD_NEXT, name));
}
#define REAL(name) static const auto real = Next<decltype(&::name)>(#name)

// "io", "meta", "copy" or "supe", or nothing if the thread is not an engine's.
const char* Role() {
  thread_local char role[16] = {};
  if (role[0] != 0) return role;
  char name[16] = {};
  ::prctl(PR_GET_NAME, name);
  if (std::strncmp(name, "kvs-", 4) != 0) return nullptr;
  const bool load_only = std::strncmp(name + 4, "load", 4) == 0;
  std::memcpy(role, load_only ? "io-" : name + 4, 4);
  role[std::strcspn(role, "-")] = 0;
  return role;
}

std::string OfFd(int fd) {
  char link[32], path[4096];
  std::snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
  const ssize_t chars = ::readlink(link, path, sizeof(path));
  return chars < 0 ? std::string() : std::string(path, static_cast<std::size_t>(chars));
}
std::string At(int dir, const char* name) {
  return name[0] == '/' || dir == AT_FDCWD ? std::string(name) : OfFd(dir) + "/" + name;
}

std::uint64_t Mix(std::uint64_t x) {  // splitmix64's finaliser
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}
std::uint64_t Hash(std::string_view text, std::uint64_t start) {
  for (const char c : text) start = Mix(start ^ static_cast<unsigned char>(c));
  return start;
}

// What decides about a call must be the same in every run: not the root, not who we are.
std::string_view Stable(std::string_view path) {
  path.remove_prefix(std::min<std::size_t>(control->root_chars, path.size()));
  if (path.ends_with(".tmp")) path.remove_prefix(path.rfind('-'));
  return path;
}

// The rule that this call meets, or null.
Rule* Meet(Op op, const std::string& path, std::int64_t offset = 0) {
  const char* const role = Role();
  __atomic_add_fetch(&control->calls[op], 1, __ATOMIC_RELAXED);
  for (std::size_t i = 0; i < kRules; ++i) {
    Rule& rule = control->rules[i];
    if (__atomic_load_n(&rule.active, __ATOMIC_ACQUIRE) == 0 || rule.op != op) continue;
    if (offset < rule.begin || offset >= rule.end) continue;
    if (rule.role[0] != 0 && std::strncmp(role, rule.role, 4) != 0) continue;
    if (::fnmatch(rule.pattern, path.c_str(), 0) != 0) continue;
    const std::uint32_t number = __atomic_fetch_add(&rule.matched, 1, __ATOMIC_RELAXED);
    if (number < rule.skip || (rule.count > 0 && number >= rule.skip + rule.count)) continue;
    std::uint64_t hash = Hash(Stable(path), Mix(rule.seed) + 64 * i + op);
    hash = Hash(role, hash);
    const std::uint32_t turn =
        __atomic_fetch_add(&control->counters[hash % kCounters], 1, __ATOMIC_RELAXED);
    hash = Mix(hash + turn);
    if (static_cast<std::uint32_t>(hash >> 32) > rule.probability) continue;
    __atomic_fetch_add(&rule.injected, 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(&control->trace, hash, __ATOMIC_RELAXED);
    return &rule;
  }
  return nullptr;
}

void Wait(Rule& rule) {
  __atomic_add_fetch(&rule.waiting, 1, __ATOMIC_RELAXED);
  const timespec pause{0, 1000000};
  while (__atomic_load_n(&rule.hold, __ATOMIC_ACQUIRE) != 0) ::nanosleep(&pause, nullptr);
  __atomic_sub_fetch(&rule.waiting, 1, __ATOMIC_RELAXED);
}

bool Watched() { return control != nullptr && Role() != nullptr; }

// Makes a call under the rule that it meets. `path` is only asked for on an engine's thread.
template <typename Path, typename Call>
auto Under(Op op, Path&& path, Call&& call) -> decltype(call()) {
  using Result = decltype(call());
  if (!Watched()) return call();
  const int before = errno;
  Rule* const rule = Meet(op, path());
  errno = before;
  if (rule == nullptr) return call();
  Result result{};
  switch (rule->action) {
    case kHang:
      Wait(*rule);
      return call();
    case kHangAfter:
      result = call();
      Wait(*rule);
      return result;
    case kErrorAfter:
      call();
      break;
    default:
      break;
  }
  errno = rule->error;
  return static_cast<Result>(-1);
}

// Opens what the rule names in place of what was asked for.
template <typename Call>
int Opened(const std::string& path, Call&& call) {
  Rule* const rule = Meet(kOpen, path);
  if (rule == nullptr) return call(nullptr);
  if (rule->action == kSwap) return call(rule->other);
  if (rule->action == kHang) {
    Wait(*rule);
    return call(nullptr);
  }
  errno = rule->error;
  return -1;
}

ssize_t Written(int fd, const iovec* parts, int count, off_t offset) {
  REAL(pwritev);
  if (!Watched()) return real(fd, parts, count, offset);
  Rule* const rule = Meet(kWrite, OfFd(fd), offset);
  if (rule == nullptr) return real(fd, parts, count, offset);
  std::vector<char> bytes;
  for (int i = 0; i < count; ++i) {
    const char* const from = static_cast<const char*>(parts[i].iov_base);
    bytes.insert(bytes.end(), from, from + parts[i].iov_len);
  }
  const std::size_t half = std::max<std::size_t>(1, bytes.size() / 2);
  switch (rule->action) {
    case kShort:
      return ::syscall(SYS_pwrite64, fd, bytes.data(), half, offset);
    case kTorn: {
      // The later half arrives: that of a header holds nothing but zeros, so losing it shows
      // nothing.
      const std::size_t lost = bytes.size() - half;
      const off_t begin = offset + static_cast<off_t>(lost);
      const long done = ::syscall(SYS_pwrite64, fd, bytes.data() + lost, half, begin);
      return done < 0 ? done : static_cast<ssize_t>(bytes.size());
    }
    case kFlip:
      bytes[bytes.size() / 3] ^= 0x10;
      return ::syscall(SYS_pwrite64, fd, bytes.data(), bytes.size(), offset);
    case kHang:
      Wait(*rule);
      return real(fd, parts, count, offset);
    default:
      errno = rule->error;
      return -1;
  }
}

ssize_t ReadFrom(int fd, void* data, std::size_t bytes, off_t offset) {
  REAL(pread);
  if (!Watched()) return real(fd, data, bytes, offset);
  Rule* const rule = Meet(kRead, OfFd(fd), offset);
  if (rule == nullptr) return real(fd, data, bytes, offset);
  ssize_t result = 0;
  switch (rule->action) {
    case kShort:
      result = real(fd, data, bytes, offset);
      return result > 1 ? result / 2 : result;
    case kFlip:
      result = real(fd, data, bytes, offset);
      if (result > 0) static_cast<char*>(data)[result / 3] ^= 0x10;
      return result;
    case kHang:
      Wait(*rule);
      return real(fd, data, bytes, offset);
    case kHangAfter:
      result = real(fd, data, bytes, offset);
      Wait(*rule);
      return result;
    default:
      errno = rule->error;
      return -1;
  }
}

}  // namespace

extern "C" {

// Maps the file of rules; returns 0 or -1.
int faulty_calls_attach(const char* path) {
  const int fd = ::open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) return -1;
  void* const made = ::mmap(nullptr, sizeof(Control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  ::close(fd);
  auto* const mapped = static_cast<Control*>(made);
  if (made == MAP_FAILED || mapped->size != sizeof(Control)) return -1;
  control = mapped;
  return 0;
}

__attribute__((constructor)) static void AttachToEnvironment() {
  const char* const path = std::getenv("KVSHELF_FAULTY_CALLS");
  if (path != nullptr && faulty_calls_attach(path) != 0) std::abort();
}

long syscall(long number, ...) noexcept {
  REAL(syscall);
  va_list list;
  va_start(list, number);
  long a[6];
  for (long& each : a) each = va_arg(list, long);
  va_end(list);
  if (number != SYS_openat2 || !Watched()) {
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
  }
  const auto* const name = reinterpret_cast<const char*>(a[1]);
  return Opened(At(static_cast<int>(a[0]), name), [&](const char* other) -> int {
    const long path = other != nullptr ? reinterpret_cast<long>(other) : a[1];
    return static_cast<int>(real(number, a[0], path, a[2], a[3], 0L, 0L));
  });
}

ssize_t pread(int fd, void* data, std::size_t bytes, off_t offset) {
  return ReadFrom(fd, data, bytes, offset);
}
ssize_t pwrite(int fd, const void* data, std::size_t bytes, off_t offset) {
  const iovec part{const_cast<void*>(data), bytes};
  return Written(fd, &part, 1, offset);
}
ssize_t pwritev(int fd, const iovec* parts, int count, off_t offset) {
  return Written(fd, parts, count, offset);
}
int fallocate(int fd, int mode, off_t offset, off_t bytes) {
  REAL(fallocate);
  return Under(kAllocate, [&] { return OfFd(fd); }, [&] { return real(fd, mode, offset, bytes); });
}
int fstat(int fd, struct stat* result) noexcept {
  REAL(fstat);
  return Under(kFstat, [&] { return OfFd(fd); }, [&] { return real(fd, result); });
}
int fstatat(int dir, const char* path, struct stat* result, int flags) noexcept {
  REAL(fstatat);
  return Under(
      kStat, [&] { return At(dir, path); }, [&] { return real(dir, path, result, flags); });
}
int mkdirat(int dir, const char* path, mode_t mode) noexcept {
  REAL(mkdirat);
  return Under(kMkdir, [&] { return At(dir, path); }, [&] { return real(dir, path, mode); });
}
int unlinkat(int dir, const char* path, int flags) noexcept {
  REAL(unlinkat);
  return Under(kUnlink, [&] { return At(dir, path); }, [&] { return real(dir, path, flags); });
}
int renameat2(int from_dir, const char* from, int to_dir, const char* to,
              unsigned int flags) noexcept {
  REAL(renameat2);
  return Under(
      kRename, [&] { return At(to_dir, to); },
      [&] { return real(from_dir, from, to_dir, to, flags); });
}
int linkat(int from_dir, const char* from, int to_dir, const char* to, int flags) noexcept {
  REAL(linkat);
  return Under(
      kLink, [&] { return At(to_dir, to); },
      [&] { return real(from_dir, from, to_dir, to, flags); });
}
int renameat(int from_dir, const char* from, int to_dir, const char* to) noexcept {
  REAL(renameat);
  return Under(
      kPlainRename, [&] { return At(to_dir, to); },
      [&] { return real(from_dir, from, to_dir, to); });
}
int fdatasync(int fd) {
  REAL(fdatasync);
  return Under(kFsync, [&] { return OfFd(fd); }, [&] { return real(fd); });
}
int fsync(int fd) {
  REAL(fsync);
  return Under(kFsync, [&] { return OfFd(fd); }, [&] { return real(fd); });
}
int utimensat(int dir, const char* path, const timespec times[2], int flags) noexcept {
  REAL(utimensat);
  return Under(
      kUtimens, [&] { return At(dir, path); }, [&] { return real(dir, path, times, flags); });
}
int close(int fd) {
  REAL(close);
  return Under(kClose, [&] { return OfFd(fd); }, [&] { return real(fd); });
}

}  // extern "C"
