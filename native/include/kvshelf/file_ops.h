// The system calls that the engine makes, behind an interface so that tests can make them hang,
// fail or transfer less than they were asked to.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>

#include <cstddef>
#include <ctime>
#include <memory>
#include <span>

namespace kvshelf {

// Every call returns a result >= 0, or -errno. EINTR is handled inside. Thread-safe.
class FileOps {
 public:
  virtual ~FileOps() = default;

  // Opens `path` beneath `dir`, following no symbolic link in any component. O_CLOEXEC is added.
  // O_NOATIME is a wish: only a file's owner may have it.
  virtual int OpenBeneath(int dir, const char* path, int flags, mode_t mode) = 0;
  virtual ssize_t Pread(int fd, std::byte* data, std::size_t bytes, off_t offset) = 0;
  // May transfer less than asked, as the system call.
  virtual ssize_t Pwritev(int fd, std::span<const iovec> parts, off_t offset) = 0;
  // Reserves room for a file that will be `bytes` long, and makes it that long.
  virtual int Allocate(int fd, off_t bytes) = 0;
  virtual int Fstat(int fd, struct stat* result) = 0;
  // Does not follow a link in the last component.
  virtual int StatAt(int dir, const char* path, struct stat* result) = 0;
  virtual int MakeDirAt(int dir, const char* name, mode_t mode) = 0;
  virtual int UnlinkAt(int dir, const char* name) = 0;
  virtual int RenameNoReplace(int from_dir, const char* from, int to_dir, const char* to) = 0;
  virtual int LinkAt(int from_dir, const char* from, int to_dir, const char* to) = 0;
  virtual int Rename(int from_dir, const char* from, int to_dir, const char* to) = 0;
  virtual int SyncData(int fd) = 0;
  virtual int Sync(int fd) = 0;
  // Closes `fd` whatever the result is: only now may storage say that a write has failed.
  virtual int Close(int fd) = 0;
  // Sets the access time and the modification time.
  virtual int TouchAt(int dir, const char* path, timespec time) = 0;
  // -1 leaves the user or the group as it is (chown(2)).
  virtual int ChangeOwner(int fd, uid_t user, gid_t group);
  virtual int ChangeMode(int fd, mode_t mode);
};

// Without `try_openat2`, paths are walked component by component, as on kernels before 5.6.
std::shared_ptr<FileOps> MakePosixFileOps(bool try_openat2 = true);

}  // namespace kvshelf
