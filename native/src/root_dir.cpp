#include "kvshelf/root_dir.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstring>
#include <fstream>
#include <iterator>
#include <system_error>

#include "kvshelf/format.h"

namespace kvshelf {

namespace {

// As kvshelf.disk.layout.safe_host, which judges by this name whether a writer is of the same host.
constexpr std::size_t kHostBytesMax = 64;
constexpr std::size_t kBootDigits = 8;
constexpr char kMarker[] = "kvshelf.json";
constexpr mode_t kModeBits = 07777;  // of st_mode, without the type
// So long a mount that is new may not be noticed.
constexpr auto kLookInterval = std::chrono::seconds(1);

}  // namespace

std::string_view WhatIsWrongWithPath(std::string_view path) {
  if (path.empty()) return "is empty";
  if (path.size() >= PATH_MAX) return "is too long";
  if (path.front() == '/') return "is absolute";
  if (path.find('\0') != std::string_view::npos) return "has a null character";
  for (;;) {
    const std::size_t slash = path.find('/');
    const std::string_view name = path.substr(0, slash);
    if (name.empty()) return "has an empty component";
    if (name == "." || name == "..") return "has a component that is . or ..";
    if (name.size() > NAME_MAX) return "has a component that is too long";
    if (slash == std::string_view::npos) return {};
    path.remove_prefix(slash + 1);
  }
}

std::pair<std::string, std::string> SplitPath(std::string_view path) {
  const std::size_t slash = path.rfind('/');
  if (slash == std::string_view::npos) return {"", std::string(path)};
  return {std::string(path.substr(0, slash)), std::string(path.substr(slash + 1))};
}

RootDir::RootDir(std::shared_ptr<FileOps> ops, const std::string& root, std::string temp_prefix,
                 mode_t dir_mode)
    : ops_(std::move(ops)),
      path_(root),
      fd_(::open(root.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)),
      next_look_(Clock::now() + kLookInterval),
      temp_prefix_(std::move(temp_prefix)),
      dir_mode_(dir_mode) {
  if (!fd_) throw std::system_error(errno, std::generic_category(), root);
  LookAtOwner();
}

int RootDir::fd() const {
  const TimePoint now = Clock::now();
  TimePoint next = next_look_.load(std::memory_order_relaxed);
  if (now >= next && next_look_.compare_exchange_strong(next, now + kLookInterval)) FollowPath();
  return fd_.get();
}

// dup3() replaces a descriptor at once for all threads; a call under way keeps the old directory.
void RootDir::FollowPath() const {
  struct stat at_path{};
  struct stat ours{};
  struct stat marker{};
  if (::stat(path_.c_str(), &at_path) != 0) return;
  if (::fstat(fd_.get(), &ours) == 0 && ours.st_dev == at_path.st_dev &&
      ours.st_ino == at_path.st_ino) {
    return;
  }
  const UniqueFd other(::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  // Without a marker it is a mount point with nothing mounted, or somebody else's directory.
  if (!other || ::fstatat(other.get(), kMarker, &marker, AT_SYMLINK_NOFOLLOW) != 0 ||
      !S_ISREG(marker.st_mode)) {
    return;
  }
  ::dup3(other.get(), fd_.get(), O_CLOEXEC);
  may_change_owner_ = may_change_mode_ = true;
  LookAtOwner();
}

void RootDir::LookAtOwner() const {
  struct stat root{};
  if (::fstat(fd_.get(), &root) != 0) return;
  user_ = root.st_uid;
  group_ = root.st_gid;
  mode_ = root.st_mode;
}

void RootDir::GiveToUsers(int fd, mode_t mode) const {
  const mode_t root_mode = mode_.load(std::memory_order_relaxed);
  const uid_t user = user_.load(std::memory_order_relaxed);
  const gid_t group = group_.load(std::memory_order_relaxed);
  const bool as_superuser = ::geteuid() == 0 && (user != 0 || group != ::getegid());
  if (!as_superuser && (root_mode & (S_IWGRP | S_IWOTH)) == 0) return;
  struct stat made{};
  if (ops_->Fstat(fd, &made) < 0) return;
  const uid_t new_user = as_superuser && made.st_uid != user ? user : static_cast<uid_t>(-1);
  bool has_group = made.st_gid == group;
  if ((new_user != static_cast<uid_t>(-1) || !has_group) &&
      may_change_owner_.load(std::memory_order_relaxed)) {
    const int error = ops_->ChangeOwner(fd, new_user, has_group ? static_cast<gid_t>(-1) : group);
    if (error < 0) {
      may_change_owner_ = false;  // or each file would be tried in vain
    } else {
      has_group = true;
    }
  }
  mode_t wanted = made.st_mode & kModeBits;
  // Another group's members must not get what the root's are to have.
  if (has_group && (root_mode & S_IWGRP) != 0) wanted |= mode & root_mode & S_IRWXG;
  if ((root_mode & S_IWOTH) != 0) wanted |= mode & root_mode & S_IRWXO;
  if (wanted == (made.st_mode & kModeBits) || !may_change_mode_.load(std::memory_order_relaxed)) {
    return;
  }
  if (ops_->ChangeMode(fd, wanted) < 0) may_change_mode_ = false;
}

int RootDir::OpenFolder(const std::string& folder) const {
  return ops_->OpenBeneath(fd(), folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY, 0);
}

int RootDir::SyncFolders(std::string folder) const {
  for (;;) {
    const UniqueFd fd(OpenFolder(folder));
    // One that is gone was empty: what was published in it has been evicted.
    const int synced = fd ? ops_->Sync(fd.get()) : fd.get() == -ENOENT ? 0 : fd.get();
    if (synced < 0 || folder.empty()) return synced;
    folder = SplitPath(folder).first;
  }
}

int RootDir::MakeFolder(const std::string& folder) const {
  const int opened = OpenFolder(folder);
  if (opened != -ENOENT || folder.empty()) return opened;
  const auto [parent, name] = SplitPath(folder);
  const int parent_fd = MakeFolder(parent);
  if (parent_fd < 0) return parent_fd;
  const UniqueFd owner(parent_fd);
  const int made = ops_->MakeDirAt(parent_fd, name.c_str(), dir_mode_);
  if (made < 0 && made != -EEXIST) return made;
  if (made >= 0) {
    const UniqueFd own(ops_->OpenBeneath(parent_fd, name.c_str(), O_RDONLY | O_DIRECTORY, 0));
    if (!own) return own.get();
    GiveToUsers(own.get(), dir_mode_);
  }
  return OpenFolder(folder);
}

UniqueFd RootDir::NameFolder(const std::string& folder, int* error) const {
  const int opened =
      ops_->OpenBeneath(fd(), folder.empty() ? "." : folder.c_str(), O_PATH | O_DIRECTORY, 0);
  *error = opened < 0 ? opened : 0;
  return UniqueFd(opened);
}

int RootDir::StatBeneath(const std::string& path, struct stat* result) const {
  const auto [folder, name] = SplitPath(path);
  int error = 0;
  const UniqueFd holder = NameFolder(folder, &error);
  return holder ? ops_->StatAt(holder.get(), name.c_str(), result) : error;
}

int RootDir::TouchBeneath(const std::string& path, timespec time) const {
  const auto [folder, name] = SplitPath(path);
  int error = 0;
  const UniqueFd holder = NameFolder(folder, &error);
  return holder ? ops_->TouchAt(holder.get(), name.c_str(), time) : error;
}

std::string RootDir::NextTempName() {
  return temp_prefix_ + "-" + std::to_string(temp_counter_.fetch_add(1)) + ".tmp";
}

int RootDir::ProbeDirect() {
  std::string name(1, '.');
  name += NextTempName();
  const UniqueFd file(
      ops_->OpenBeneath(fd_.get(), name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_DIRECT, 0600));
  if (!file) {
    // Some file systems create the file before they refuse the flag.
    const int error = -EOPNOTSUPP;
    ops_->UnlinkAt(fd_.get(), name.c_str());
    return error;
  }
  const StagingBuffer buffer = AllocateAligned(2 * kPageBytes);
  std::memset(buffer.data(), 0x5A, kPageBytes);
  const iovec part{buffer.data(), kPageBytes};
  ssize_t result = ops_->Pwritev(file.get(), {&part, 1}, 0);
  if (result == static_cast<ssize_t>(kPageBytes)) {
    result = ops_->Pread(file.get(), buffer.data() + kPageBytes, kPageBytes, 0);
  }
  ops_->UnlinkAt(fd_.get(), name.c_str());
  if (result < 0) return static_cast<int>(result);
  const bool same = result == static_cast<ssize_t>(kPageBytes) &&
                    std::memcmp(buffer.data(), buffer.data() + kPageBytes, kPageBytes) == 0;
  return same ? 0 : -EIO;
}

int RootDir::WritePage(int file, std::byte* data, std::size_t page) {
  for (std::size_t done = 0; done < kPageBytes;) {
    const iovec part{data + done, kPageBytes - done};
    const ssize_t written =
        ops_->Pwritev(file, {&part, 1}, static_cast<off_t>(page * kPageBytes + done));
    if (written <= 0) return written < 0 ? static_cast<int>(written) : -ENOSPC;
    done += static_cast<std::size_t>(written);
  }
  return 0;
}

bool RootDir::HoldsPage(int file, const std::byte* data, std::size_t page) {
  std::array<std::byte, kPageBytes> found{};
  for (std::size_t done = 0; done < kPageBytes;) {
    const ssize_t read = ops_->Pread(file, found.data() + done, kPageBytes - done,
                                     static_cast<off_t>(page * kPageBytes + done));
    if (read <= 0) return false;
    done += static_cast<std::size_t>(read);
  }
  return std::memcmp(found.data(), data, kPageBytes) == 0;
}

// Writes the two pages of a file in the order given; 0 or -errno. What reads back otherwise than it
// was written is -EIO.
int RootDir::TryPages(int folder, std::size_t first, std::size_t second) {
  const std::string name = NextTempName();
  UniqueFd file(ops_->OpenBeneath(folder, name.c_str(), O_WRONLY | O_CREAT | O_EXCL, 0600));
  if (!file) return -EIO;
  const StagingBuffer pages = AllocateAligned(2 * kPageBytes);
  std::memset(pages.data(), 1, kPageBytes);
  std::memset(pages.data() + kPageBytes, 2, kPageBytes);
  int error = 0;
  for (const std::size_t page : {first, second}) {
    if (error == 0) error = WritePage(file.get(), pages.data() + page * kPageBytes, page);
  }
  const int closed = ops_->Close(file.Release());
  if (error == 0) error = closed;
  const UniqueFd copy(ops_->OpenBeneath(folder, name.c_str(), O_RDONLY, 0));
  for (std::size_t page = 0; error == 0 && page < 2; ++page) {
    if (!HoldsPage(copy.get(), pages.data() + page * kPageBytes, page)) error = -EIO;
  }
  ops_->UnlinkAt(folder, name.c_str());
  return error;
}

void RootDir::LearnWriteOrder(int folder) {
  if (habits_.order != WriteOrder::kUnknown) return;
  if (TryPages(folder, 1, 0) == 0) {
    habits_.order = WriteOrder::kAny;
  } else if (TryPages(folder, 0, 1) == 0) {
    habits_.order = WriteOrder::kInOrder;
  }
}

namespace {

// The first 8 hex digits of the boot id (random(4)); zeros if it cannot be read.
std::string Boot() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  boot.resize(kBootDigits, 'x');
  const bool sound = boot.find_first_not_of("0123456789abcdef") == std::string::npos;
  return sound ? boot : std::string(kBootDigits, '0');
}

}  // namespace

std::string OwnTempPrefix() {
  char host[HOST_NAME_MAX + 1] = {};
  ::gethostname(host, sizeof(host) - 1);
  std::string prefix;
  for (const char c : std::string_view(host)) {
    const bool safe = (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') ||
                      c == '.' || c == '_' || c == '-';
    if (prefix.size() < kHostBytesMax) prefix += safe ? c : '_';
  }
  if (prefix.empty()) prefix = "host";
  std::ifstream stat_file("/proc/self/stat");
  const std::string stat{std::istreambuf_iterator<char>(stat_file), {}};
  // The command name in field 2 may hold anything, so fields are counted from its last ')'.
  std::string start = "0";
  std::size_t at = stat.rfind(')');
  for (int field = 2; field < 22 && at != std::string::npos; ++field) {
    at = stat.find(' ', at + 1);
  }
  if (at != std::string::npos) start = stat.substr(at + 1, stat.find(' ', at + 1) - at - 1);
  struct stat pids{};  // 0 if it cannot be known
  if (::stat("/proc/self/ns/pid", &pids) != 0) pids.st_ino = 0;
  return prefix + "-" + Boot() + "-" + std::to_string(pids.st_ino) + "-" +
         std::to_string(::getpid()) + "-" + start;
}

}  // namespace kvshelf
