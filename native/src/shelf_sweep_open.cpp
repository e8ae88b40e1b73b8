// The namespaces and ranks of a pass: opened when they are needed, listed when they have changed.
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string_view>

#include "shelf_sweep_parts.h"

namespace kvshelf {
namespace {

// A rank of no more leaf folders is looked at whole when it is opened, not opened once more.
constexpr std::size_t kFewLeaves = 16;

std::string RankName(std::uint32_t number) {
  return std::string("r").append(std::to_string(number));
}

// The number of a leaf folder; -1 if the name is none.
int LeafIndex(std::string_view name) {
  if (name.size() != 3) return -1;
  int index = 0;
  for (const char digit : name) {
    const std::size_t value = std::string_view("0123456789abcdef").find(digit);
    if (value == std::string_view::npos) return -1;
    index = 16 * index + static_cast<int>(value);
  }
  return index;
}

// The time to compare the next look with; 0 if it may not show another change.
std::int64_t SafeTime(const struct stat& status, std::int64_t looked_at_ns) {
  const std::int64_t mtime_ns = Nanoseconds(status.st_mtim);
  return mtime_ns < looked_at_ns - kRacy ? mtime_ns : 0;
}

bool HasTime(const struct stat& status, std::int64_t mtime_ns) {
  return mtime_ns != 0 && mtime_ns == Nanoseconds(status.st_mtim);
}

}  // namespace

void ShelfSweep::SetNamespaces(const std::vector<std::string>& folders) {
  for (NamespaceState& known : namespaces_) known.listed = false;
  for (const std::string& folder : folders) {
    const auto [at, is_new] = index_.try_emplace(folder, namespaces_.size());
    if (is_new) {
      namespaces_.push_back({folder, true, {}, 0});
      spaces_.emplace_back();
    }
    namespaces_[at->second].listed = true;
  }
}

std::string ShelfSweep::PathOf(const Rank& rank) const {
  return namespaces_[rank.name_space].folder + "/" + RankName(rank.number);
}

int ShelfSweep::OpenFolder(int parent, const std::string& name, struct stat* found) {
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
  return error < 0 ? error : -EXDEV;  // another file system is mounted there
}

ShelfSweep::Folder ShelfSweep::FolderOf(Rank& rank, int* error) {
  {
    const LockGuard lock(mutex_);
    if (rank.folder != nullptr) return rank.folder;
  }
  struct stat status{};
  *error = OpenFolder(root_.get(), PathOf(rank), &status);
  if (*error < 0) return nullptr;
  auto folder = std::make_shared<const UniqueFd>(*error);
  Keep(rank, folder, true);
  return folder;
}

// Keeps a rank's folder open, in place of the one that was opened first if `replace`.
void ShelfSweep::Keep(Rank& rank, const Folder& folder, bool replace) {
  const LockGuard lock(mutex_);
  if (rank.folder != nullptr || kept_max_ == 0) return;
  if (kept_.size() >= kept_max_) {
    if (!replace) return;
    kept_.front()->folder = nullptr;
    kept_.pop_front();
  }
  rank.folder = folder;
  kept_.push_back(&rank);
}

void ShelfSweep::CloseKept() {
  const LockGuard lock(mutex_);
  for (Rank* const rank : kept_) rank->folder = nullptr;
  kept_.clear();
}

std::unique_ptr<ShelfSweep::Pass> ShelfSweep::BeginPass(bool all) {
  CloseKept();  // what lies under their names may be another folder by now
  auto pass = std::make_unique<Pass>();
  pass->time_ns = clock_.Now();
  pass->all = all;
  if (all) pass->histograms.resize(namespaces_.size());
  for (std::size_t i = 0; i < namespaces_.size(); ++i) {
    if (namespaces_[i].listed) {
      pass->spaces.push_back(i);
    } else {
      DropRanks(i);
    }
  }
  return pass;
}

// Opens the namespaces that are left; whether all are.
bool ShelfSweep::Open(Walk& walk) {
  Pass& pass = walk.pass;
  if (pass.opened) return true;
  Run(walk, pass.spaces.size() - pass.next_space, &ShelfSweep::OpenSpaces);
  if (pass.next_space < pass.spaces.size()) return false;
  pass.opened = true;
  pass.spaces = {};
  // Sixteen folders of a rank in a row: it need not be opened for each of them.
  const auto order = [](const auto& item) {
    const std::uint16_t leaf = item.first->leaves[item.second].index;
    return std::tuple(leaf >> 4, item.first->name_space, item.first->number, leaf);
  };
  std::sort(pass.items.begin(), pass.items.end(),
            [&](const auto& a, const auto& b) { return order(a) < order(b); });
  return true;
}

void ShelfSweep::OpenSpaces(Walk& walk) {
  Pass& pass = walk.pass;
  Burst burst(awake_);
  for (bool first = true;; first = false) {
    std::size_t index = 0;
    {
      const LockGuard lock(mutex_);
      if (IsOver(walk, first) || pass.next_space == pass.spaces.size()) return;
      index = pass.spaces[pass.next_space++];
    }
    OpenSpace(walk, index);
    burst.RestIfDue();
  }
}

void ShelfSweep::OpenSpace(Walk& walk, std::size_t index) {
  Space& space = spaces_[index];
  const std::string& name = namespaces_[index].folder;
  const std::int64_t before = clock_.Now();
  struct stat status{}, file{};
  const UniqueFd folder(OpenFolder(root_.get(), name, &status));
  int error = folder.get();
  if (folder) error = ops_->StatAt(folder.get(), "namespace.json", &file);
  if (error >= 0 && !S_ISREG(file.st_mode)) error = -ENOTDIR;
  if (error >= 0 && (walk.pass.all || !HasTime(status, space.mtime_ns))) {
    std::vector<std::string> names;
    error = ListNames(folder.get(), &names);
    if (error >= 0) {
      MatchRanks(walk, index, names);
      space.mtime_ns = SafeTime(status, before);
    }
  }
  if (error < 0) {
    if (NoteUnopened(walk, name, error)) DropRanks(index);
    return;
  }
  for (const std::unique_ptr<Rank>& rank : space.ranks) OpenRank(walk, folder.get(), *rank);
  const auto gone = [](const std::unique_ptr<Rank>& rank) { return rank->gone; };
  // What hid a rank's folder, such as a mount, may go without a sign in the namespace's time.
  if (std::erase_if(space.ranks, gone) > 0) space.mtime_ns = 0;
}

// Makes what a namespace's folder holds what is known of it.
void ShelfSweep::MatchRanks(Walk& walk, std::size_t index, const std::vector<std::string>& names) {
  std::vector<std::unique_ptr<Rank>>& ranks = spaces_[index].ranks;
  std::vector<std::uint32_t> numbers;
  for (const std::string& name : names) {
    const std::int64_t number = RankOf(name);
    if (number >= 0) {
      numbers.push_back(static_cast<std::uint32_t>(number));
    } else if (name != "namespace.json" && name != "tmp") {
      NoteUnopened(walk, namespaces_[index].folder + "/" + name, -ENOTDIR);
    }
  }
  std::sort(numbers.begin(), numbers.end());
  std::vector<std::unique_ptr<Rank>> now;
  auto known = ranks.begin();
  const LockGuard lock(mutex_);
  const auto drop = [&]() KVSHELF_REQUIRES(mutex_) {
    for (Leaf& leaf : (*known)->leaves) Forget(**known, leaf);
    ++known;
  };
  for (const std::uint32_t number : numbers) {
    while (known != ranks.end() && (*known)->number < number) drop();
    if (known != ranks.end() && (*known)->number == number) {
      now.push_back(std::move(*known++));
      continue;
    }
    now.push_back(std::make_unique<Rank>());
    now.back()->name_space = index;
    now.back()->number = number;
  }
  while (known != ranks.end()) drop();
  ranks = std::move(now);
}

void ShelfSweep::OpenRank(Walk& walk, int space, Rank& rank) {
  const std::int64_t before = clock_.Now();
  struct stat status{};
  std::vector<bool> settled;
  int error = OpenFolder(space, RankName(rank.number), &status);
  if (error >= 0) {
    const auto folder = std::make_shared<const UniqueFd>(error);
    if (walk.pass.all || !HasTime(status, rank.mtime_ns)) {
      std::vector<std::string> names;
      error = ListNames(folder->get(), &names);
      if (error >= 0) {
        MatchLeaves(walk, rank, names);
        rank.mtime_ns = SafeTime(status, before);
      }
    }
    if (error >= 0 && rank.leaves.size() <= kFewLeaves) {
      for (const Leaf& leaf : rank.leaves) {
        error = ops_->StatAt(folder->get(), LeafName(leaf.index).c_str(), &status);
        settled.push_back(error >= 0 && NeedsNoList(walk, rank, leaf, status));
      }
      error = 0;  // the walk asks again, and counts it
    }
    if (error >= 0) Keep(rank, folder, false);
  }
  if (error < 0) {
    rank.gone = NoteUnopened(walk, PathOf(rank), error);
    const LockGuard lock(mutex_);
    for (Leaf& leaf : rank.leaves) {
      if (rank.gone) Forget(rank, leaf);
    }
    return;
  }
  const LockGuard lock(mutex_);
  settled.resize(rank.leaves.size());
  for (std::size_t i = 0; i < rank.leaves.size(); ++i) {
    if (settled[i]) continue;
    walk.pass.items.emplace_back(&rank, static_cast<std::uint16_t>(i));
  }
}

// Makes what a rank's folder holds what is known of it.
void ShelfSweep::MatchLeaves(Walk& walk, Rank& rank, const std::vector<std::string>& names) {
  std::vector<std::uint16_t> there;
  for (const std::string& name : names) {
    const int index = LeafIndex(name);
    if (index >= 0) {
      there.push_back(static_cast<std::uint16_t>(index));
    } else {
      NoteUnopened(walk, PathOf(rank) + "/" + name, -ENOTDIR);
    }
  }
  std::sort(there.begin(), there.end());
  std::vector<Leaf> now;
  now.reserve(there.size());
  auto known = rank.leaves.begin();
  const LockGuard lock(mutex_);
  for (const std::uint16_t index : there) {
    while (known != rank.leaves.end() && known->index < index) Forget(rank, *known++);
    const bool is_known = known != rank.leaves.end() && known->index == index;
    now.push_back(is_known ? *known++ : Leaf{});
    now.back().index = index;
  }
  while (known != rank.leaves.end()) Forget(rank, *known++);
  rank.leaves = std::move(now);
}

// Whether there is no folder of ours under that name; else it is one that cannot be looked into.
bool ShelfSweep::NoteUnopened(Walk& walk, const std::string& path, int error) {
  const LockGuard lock(mutex_);
  if (error == -ENOTDIR || error == -ELOOP || error == -EXDEV) {
    NoteUnknown(walk.pass.foreign, path);
    return true;
  }
  if (error == -ENOENT || error == -ESTALE) return true;
  ++walk.report.faults[-error];
  ++walk.pass.unseen;
  return false;
}

// Forgets a namespace that is gone, with its histogram.
void ShelfSweep::DropRanks(std::size_t index) {
  const LockGuard lock(mutex_);
  Space& space = spaces_[index];
  for (const std::unique_ptr<Rank>& rank : space.ranks) {
    for (Leaf& leaf : rank->leaves) Forget(*rank, leaf);
  }
  space = {};
  if (complete_ != nullptr && index < complete_->histograms.size()) {
    complete_->histograms[index] = {};
  }
}

void ShelfSweep::Forget(Rank& rank, Leaf& leaf) {
  Amount& amount = namespaces_[rank.name_space].amount;
  amount.files -= leaf.amount.files;
  amount.bytes -= leaf.amount.bytes;
  const std::uint16_t index = leaf.index;
  leaf = {};
  leaf.index = index;
}

}  // namespace kvshelf
