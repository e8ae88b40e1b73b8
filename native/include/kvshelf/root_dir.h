// A shelf's root directory: paths beneath it, and names for temp files.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "kvshelf/config.h"
#include "kvshelf/file_ops.h"
#include "kvshelf/memory.h"

namespace kvshelf {

// Empty if `path` may be used beneath a root, else what is wrong with it.
std::string_view WhatIsWrongWithPath(std::string_view path);

// Folder and name of a relative path; the folder of a path without a slash is empty.
std::pair<std::string, std::string> SplitPath(std::string_view path);

// How a whole file gets its name, best first: the last may replace another process's file.
enum class Naming { kUnknown, kRenameNoReplace, kLink, kRename };
// Whether a file may be written in any order, or from its start to its end only.
enum class WriteOrder { kUnknown, kAny, kInOrder };

// What writers found the file system to do, last. Errors are errnos; 0 is none.
struct RootHabits {
  std::atomic<Naming> naming{Naming::kUnknown};
  std::atomic<int> rename_error{0};
  std::atomic<int> link_error{0};
  std::atomic<int> allocate_error{0};
  std::atomic<WriteOrder> order{WriteOrder::kUnknown};
};

// Thread-safe. Immutable but for the counter of temp names, for what is mounted at the path, and
// for its habits.
class RootDir {
 public:
  // `temp_prefix` is "<host>-<boot8>-<pids>-<pid>-<start>" (docs/layout.md).
  // Throws std::system_error if `root` cannot be opened as a directory.
  RootDir(std::shared_ptr<FileOps> ops, const std::string& root, std::string temp_prefix,
          mode_t dir_mode);

  FileOps& ops() const { return *ops_; }
  // The directory at the path: once a second it is looked whether another one is there now, with a
  // marker, as after its file system was mounted anew. The number stays the same. Until there is
  // one, the directory that was opened last goes on being used.
  int fd() const;

  // A folder beneath the root, opened for reading; the fd, or -errno. An empty folder is the root.
  int OpenFolder(const std::string& folder) const;
  // Makes the names in a folder last, and its own, up to the root; 0 or -errno. All of them each
  // time: a folder that is there may have been made just now, by somebody who has not synced yet.
  int SyncFolders(std::string folder) const;
  // Opens a folder too, and makes what is missing of it.
  int MakeFolder(const std::string& folder) const;
  // stat and touch of `path`, following no symbolic link in any component, as an open does: 0 or
  // -errno. The system calls themselves would follow all but the last.
  int StatBeneath(const std::string& path, struct stat* result) const;
  int TouchBeneath(const std::string& path, timespec time) const;
  std::string NextTempName();
  // Gives what this process has just made beneath the root, a folder or a file, to those that the
  // root is for, as kvshelf.disk.owner does: made as the superuser, it gets the root's user and
  // group; where the root's group or all may write, they get what `mode` allows them whatever the
  // umask is. A mount that refuses decides itself who may use it.
  void GiveToUsers(int fd, mode_t mode) const;

  // Whether O_DIRECT reads and writes work in the root; 0 or -errno. Leaves no file behind.
  int ProbeDirect();

  RootHabits& habits() { return habits_; }
  // Called when a write was refused: finds out with a file of two pages in `folder` whether files
  // must be written in order. A mount that refuses both orders stays unknown.
  void LearnWriteOrder(int folder);

 private:
  // As OpenFolder, only to name what lies in it: asks for no permission to list.
  UniqueFd NameFolder(const std::string& folder, int* error) const;
  void FollowPath() const;
  int WritePage(int file, std::byte* data, std::size_t page);
  bool HoldsPage(int file, const std::byte* data, std::size_t page);
  int TryPages(int folder, std::size_t first, std::size_t second);
  void LookAtOwner() const;

  std::shared_ptr<FileOps> ops_;
  std::string path_;
  UniqueFd fd_;
  mutable std::atomic<TimePoint> next_look_;
  std::string temp_prefix_;
  mode_t dir_mode_;
  // Of the root, and whether the mount has let this process change those of a file.
  mutable std::atomic<uid_t> user_{0};
  mutable std::atomic<gid_t> group_{0};
  mutable std::atomic<mode_t> mode_{0};
  mutable std::atomic<bool> may_change_owner_{true};
  mutable std::atomic<bool> may_change_mode_{true};
  std::atomic<std::uint64_t> temp_counter_{0};
  RootHabits habits_;
};

// "<host>-<boot8>-<pids>-<pid>-<start>" of this process, from /proc; zeros for what is hidden, as
// kvshelf.disk.root.this_owner has them.
std::string OwnTempPrefix();

}  // namespace kvshelf
