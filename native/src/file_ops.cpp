#include "kvshelf/file_ops.h"

#include <sys/syscall.h>
#include <unistd.h>
#if __has_include(<linux/openat2.h>)
#include <linux/openat2.h>
#endif

#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <string>

#include "kvshelf/memory.h"

namespace kvshelf {
namespace {

template <typename Call>
auto Retry(Call&& call) -> decltype(call()) {
  for (;;) {
    const auto result = call();
    if (result >= 0) return result;
    if (errno != EINTR) return static_cast<decltype(call())>(-errno);
  }
}

// What a call answers that the kernel lacks, or that a container's seccomp profile forbids:
// profiles choose the errno.
bool MayBeRefusal(int result) {
  switch (-result) {
    case EPERM:
    case EACCES:
    case ENOSYS:
    case EINVAL:
    case EOPNOTSUPP:
    case ENOTTY:
    case E2BIG:
      return true;
    default:
      return false;
  }
}

class PosixFileOps final : public FileOps {
 public:
  explicit PosixFileOps(bool try_openat2) : has_openat2_(try_openat2) {}

  int OpenBeneath(int dir, const char* path, int flags, mode_t mode) override {
    if ((flags & O_NOATIME) == 0) return Open(dir, path, flags, mode);
    const int without = flags & ~O_NOATIME;
    if (!may_hide_reads_.load(std::memory_order_relaxed)) return Open(dir, path, without, mode);
    const int fd = Open(dir, path, flags, mode);
    if (fd != -EPERM) return fd;
    may_hide_reads_.store(false, std::memory_order_relaxed);  // or each file would be tried twice
    return Open(dir, path, without, mode);
  }
  ssize_t Pread(int fd, std::byte* data, std::size_t bytes, off_t offset) override {
    return Retry([&] { return ::pread(fd, data, bytes, offset); });
  }
  ssize_t Pwritev(int fd, std::span<const iovec> parts, off_t offset) override {
    return Retry([&] {
      if (parts.size() == 1) return ::pwrite(fd, parts[0].iov_base, parts[0].iov_len, offset);
      return ::pwritev(fd, parts.data(), static_cast<int>(parts.size()), offset);
    });
  }
  int Allocate(int fd, off_t bytes) override {
    return Retry([&] { return ::fallocate(fd, 0, 0, bytes); });
  }
  int Fstat(int fd, struct stat* result) override {
    return Retry([&] { return ::fstat(fd, result); });
  }
  int StatAt(int dir, const char* path, struct stat* result) override {
    return Retry([&] { return ::fstatat(dir, path, result, AT_SYMLINK_NOFOLLOW); });
  }
  int MakeDirAt(int dir, const char* name, mode_t mode) override {
    return Retry([&] { return ::mkdirat(dir, name, mode); });
  }
  int UnlinkAt(int dir, const char* name) override {
    return Retry([&] { return ::unlinkat(dir, name, 0); });
  }
  int RenameNoReplace(int from_dir, const char* from, int to_dir, const char* to) override {
    const int renamed =
        Retry([&] { return ::renameat2(from_dir, from, to_dir, to, RENAME_NOREPLACE); });
    return MayBeRefusal(renamed) && !HasRenameAt2() ? -ENOSYS : renamed;
  }
  int LinkAt(int from_dir, const char* from, int to_dir, const char* to) override {
    return Retry([&] { return ::linkat(from_dir, from, to_dir, to, 0); });
  }
  int Rename(int from_dir, const char* from, int to_dir, const char* to) override {
    return Retry([&] { return ::renameat(from_dir, from, to_dir, to); });
  }
  int SyncData(int fd) override {
    return Retry([&] { return ::fdatasync(fd); });
  }
  int Sync(int fd) override {
    return Retry([&] { return ::fsync(fd); });
  }
  int Close(int fd) override {
    // Never again after EINTR: Linux has closed it, and its number may be another file's by now.
    return ::close(fd) < 0 ? -errno : 0;
  }
  int TouchAt(int dir, const char* path, timespec time) override {
    const timespec times[2] = {time, time};
    return Retry([&] { return ::utimensat(dir, path, times, AT_SYMLINK_NOFOLLOW); });
  }

 private:
  int Open(int dir, const char* path, int flags, mode_t mode) {
    if (has_openat2_.load(std::memory_order_relaxed)) {
      const int fd = OpenAt2(dir, path, flags, mode);
      if (!MayBeRefusal(fd)) return fd;
      if (fd == -ENOSYS || (fd != -EPERM && !HasOpenAt2())) {
        has_openat2_.store(false, std::memory_order_relaxed);
      } else if (fd != -EPERM) {
        return fd;  // about the file
      }
      // EPERM may be either: the older calls tell, each time.
    }
    return OpenByComponents(dir, path, flags, mode);
  }

  // Whether the calls are there at all, by what can only be refused: the path is not looked at, or
  // can always be opened.
  static bool HasRenameAt2() {
    return ::syscall(SYS_renameat2, AT_FDCWD, "", AT_FDCWD, "", RENAME_NOREPLACE) < 0 &&
           errno == ENOENT;
  }
  static bool HasOpenAt2() {
    return static_cast<bool>(UniqueFd(OpenAt2(AT_FDCWD, ".", O_PATH | O_DIRECTORY, 0)));
  }

  static int OpenAt2(int dir, const char* path, int flags, mode_t mode) {
#if defined(RESOLVE_BENEATH) && defined(SYS_openat2)
    open_how how{};
    how.flags = static_cast<std::uint64_t>(flags | O_CLOEXEC | O_NOFOLLOW);
    how.mode = (flags & O_CREAT) != 0 ? mode : 0;
    how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
    int fd = -EAGAIN;
    // EAGAIN: a rename elsewhere raced with the walk; the manual says to try again.
    for (int attempt = 0; attempt < 100 && fd == -EAGAIN; ++attempt) {
      fd = Retry(
          [&] { return static_cast<int>(::syscall(SYS_openat2, dir, path, &how, sizeof(how))); });
    }
    return fd;
#else  // kernel headers older than 5.6
    static_cast<void>(dir), static_cast<void>(path), static_cast<void>(flags);
    static_cast<void>(mode);
    return -ENOSYS;
#endif
  }

  // One openat a component: O_NOFOLLOW covers the last component only.
  static int OpenByComponents(int dir, const char* path, int flags, mode_t mode) {
    std::string_view rest = path;
    UniqueFd held;
    int current = dir;
    for (;;) {
      const std::size_t slash = rest.find('/');
      const std::string name(rest.substr(0, slash));
      if (name == "..") return -EXDEV;
      const bool last = slash == std::string_view::npos;
      const int open_flags = last ? flags : O_PATH | O_DIRECTORY;
      const int fd = Retry([&] {
        return ::openat(current, name.c_str(), open_flags | O_CLOEXEC | O_NOFOLLOW, mode);
      });
      if (fd < 0 || last) return fd;
      held = UniqueFd(fd);
      current = fd;
      rest.remove_prefix(slash + 1);
    }
  }

  std::atomic<bool> has_openat2_;
  std::atomic<bool> may_hide_reads_{true};
};

}  // namespace

int FileOps::ChangeOwner(int fd, uid_t user, gid_t group) {
  return Retry([&] { return ::fchown(fd, user, group); });
}

int FileOps::ChangeMode(int fd, mode_t mode) {
  return Retry([&] { return ::fchmod(fd, mode); });
}

std::shared_ptr<FileOps> MakePosixFileOps(bool try_openat2) {
  return std::make_shared<PosixFileOps>(try_openat2);
}

}  // namespace kvshelf
