#include "sweep_folders.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

namespace kvshelf::sweep {
namespace {

// Folders of ranks that stay open: at most this many, and this part of the descriptors that the
// process may have. An engine's process needs them for other things.
constexpr std::size_t kKeptMax = 64;
constexpr std::size_t kKeptShare = 16;

}  // namespace

Folders::Folders(std::shared_ptr<FileOps> ops, const std::string& root, std::mutex& mutex)
    : ops_(std::move(ops)),
      root_(::open(root.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)),
      mutex_(mutex) {
  struct stat found{};
  if (!root_ || ops_->Fstat(root_.get(), &found) < 0) {
    throw std::system_error(errno, std::generic_category(), root);
  }
  device_ = found.st_dev;
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  share_ = std::max<std::size_t>(1, limit.rlim_cur / kKeptShare);
  kept_max_ = std::min<std::size_t>(kKeptMax, limit.rlim_cur / kKeptShare);
}

bool Folders::HasFile(const struct stat& file) const {
  return S_ISREG(file.st_mode) && file.st_dev == device_;
}

int Folders::Open(int parent, const std::string& name, struct stat* found) {
  constexpr int kFlags = O_RDONLY | O_DIRECTORY;
  int fd = ops_->OpenBeneath(parent, name.c_str(), kFlags, 0);
  if (fd == -EMFILE || fd == -ENFILE) {
    CloseKept();
    fd = ops_->OpenBeneath(parent, name.c_str(), kFlags, 0);
  }
  if (fd < 0) return fd;
  const int error = ops_->Fstat(fd, found);
  if (error >= 0 && found->st_dev == device_) return fd;
  ::close(fd);
  return error < 0 ? error : -EXDEV;
}

Folder Folders::Of(Rank& rank, const std::string& path, int* error) {
  {
    const SweepLock lock(mutex_);
    if (rank.folder != nullptr) return rank.folder;
  }
  struct stat status{};
  *error = Open(root(), path, &status);
  if (*error < 0) return nullptr;
  auto folder = std::make_shared<const UniqueFd>(*error);
  Keep(rank, folder, true);
  return folder;
}

void Folders::Keep(Rank& rank, const Folder& folder, bool replace) {
  const SweepLock lock(mutex_);
  if (rank.folder != nullptr || kept_max_ == 0) return;
  if (kept_.size() >= kept_max_) {
    if (!replace) return;
    kept_.front()->folder = nullptr;
    kept_.pop_front();
  }
  rank.folder = folder;
  kept_.push_back(&rank);
}

void Folders::CloseKept() {
  const SweepLock lock(mutex_);
  for (Rank* const rank : kept_) rank->folder = nullptr;
  kept_.clear();
}

}  // namespace kvshelf::sweep
