// The folders beneath a sweep's root. Those of some ranks stay open between two looks into them.
#pragma once

#include <sys/stat.h>

#include <deque>
#include <memory>
#include <string>

#include "sweep_parts.h"

namespace kvshelf::sweep {

class Folders {
 public:
  // Throws std::system_error if `root` cannot be opened as a directory.
  Folders(std::shared_ptr<FileOps> ops, const std::string& root, std::mutex& mutex);

  int root() const { return root_.get(); }
  // How many threads may walk: each has three folders open.
  std::size_t threads_max() const { return share_; }
  // Whether it is a regular file of the root's own file system.
  bool HasFile(const struct stat& file) const;

  // A descriptor, or -errno; -EXDEV: another file system is mounted there.
  int Open(int parent, const std::string& name, struct stat* found);
  // A rank's folder; null with the error set if it cannot be opened.
  Folder Of(Rank& rank, const std::string& path, int* error);
  // Keeps a rank's folder open, in place of the one that was opened first if `replace`.
  void Keep(Rank& rank, const Folder& folder, bool replace);
  void CloseKept();

 private:
  const std::shared_ptr<FileOps> ops_;
  const UniqueFd root_;
  std::mutex& mutex_;
  dev_t device_ = 0;
  std::size_t share_ = 0;  // of the process's descriptors
  std::size_t kept_max_ = 0;
  std::deque<Rank*> kept_ SWEEP_GUARDED;  // whose folders are open, oldest first
};

}  // namespace kvshelf::sweep
