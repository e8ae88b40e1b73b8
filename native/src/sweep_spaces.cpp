#include "sweep_spaces.h"

#include <algorithm>
#include <cerrno>
#include <string_view>

namespace kvshelf::sweep {
namespace {

// A rank of no more leaf folders is looked at whole when it is opened, not opened once more.
constexpr std::size_t kFewLeaves = 16;

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

bool OpenSpaces(Parts& parts, Walk& walk) {
  Pass& pass = walk.pass;
  if (pass.opened) return true;
  parts.RunThreads(pass.spaces.size() - pass.next_space, [&] { SpaceWalker(parts, walk).Run(); });
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

void SpaceWalker::Run() {
  Pass& pass = walk_.pass;
  for (bool first = true;; first = false) {
    std::size_t index = 0;
    {
      const SweepLock lock(parts_.mutex);
      if (IsOver(first) || pass.next_space == pass.spaces.size()) return;
      index = pass.spaces[pass.next_space++];
    }
    OpenSpace(index);
    RestIfDue();
  }
}

void SpaceWalker::OpenSpace(std::size_t index) {
  Space& space = parts_.tree.SpaceAt(index);
  const std::string& name = parts_.tree.states()[index].folder;
  const std::int64_t before = parts_.clock.Now();
  struct stat status{}, file{};
  const UniqueFd folder(parts_.folders.Open(parts_.folders.root(), name, &status));
  int error = folder.get();
  if (folder) error = parts_.ops->StatAt(folder.get(), "namespace.json", &file);
  if (error >= 0 && !S_ISREG(file.st_mode)) error = -ENOTDIR;
  if (error >= 0 && (walk_.pass.all || !HasTime(status, space.mtime_ns))) {
    std::vector<std::string> names;
    error = ListNames(folder.get(), &names);
    if (error >= 0) {
      MatchRanks(index, names);
      space.mtime_ns = SafeTime(status, before);
    }
  }
  if (error < 0) {
    if (NoteUnopened(name, error)) parts_.Forget(index);
    return;
  }
  for (const std::unique_ptr<Rank>& rank : space.ranks) OpenRank(folder.get(), *rank);
  const auto gone = [](const std::unique_ptr<Rank>& rank) { return rank->gone; };
  // What hid a rank's folder, such as a mount, may go without a sign in the namespace's time.
  if (std::erase_if(space.ranks, gone) > 0) space.mtime_ns = 0;
}

void SpaceWalker::MatchRanks(std::size_t index, const std::vector<std::string>& names) {
  std::vector<std::uint32_t> numbers;
  for (const std::string& name : names) {
    const std::int64_t number = RankOf(name);
    if (number >= 0) {
      numbers.push_back(static_cast<std::uint32_t>(number));
    } else if (name != "namespace.json" && name != "tmp") {
      NoteUnopened(parts_.tree.states()[index].folder + "/" + name, -ENOTDIR);
    }
  }
  std::sort(numbers.begin(), numbers.end());
  const SweepLock lock(parts_.mutex);
  parts_.tree.MatchRanks(index, numbers);
}

void SpaceWalker::OpenRank(int space, Rank& rank) {
  const std::int64_t before = parts_.clock.Now();
  struct stat status{};
  std::vector<bool> settled;
  int error = parts_.folders.Open(space, RankName(rank.number), &status);
  if (error >= 0) {
    const auto folder = std::make_shared<const UniqueFd>(error);
    if (walk_.pass.all || !HasTime(status, rank.mtime_ns)) {
      std::vector<std::string> names;
      error = ListNames(folder->get(), &names);
      if (error >= 0) {
        MatchLeaves(rank, names);
        rank.mtime_ns = SafeTime(status, before);
      }
    }
    if (error >= 0 && rank.leaves.size() <= kFewLeaves) {
      for (const Leaf& leaf : rank.leaves) {
        error = parts_.ops->StatAt(folder->get(), LeafName(leaf.index).c_str(), &status);
        settled.push_back(error >= 0 && NeedsNoList(rank, leaf, status));
      }
      error = 0;  // the walk asks again, and counts it
    }
    if (error >= 0) parts_.folders.Keep(rank, folder, false);
  }
  if (error < 0) {
    rank.gone = NoteUnopened(parts_.tree.PathOf(rank), error);
    const SweepLock lock(parts_.mutex);
    if (rank.gone) parts_.tree.Forget(rank);
    return;
  }
  const SweepLock lock(parts_.mutex);
  settled.resize(rank.leaves.size());
  for (std::size_t i = 0; i < rank.leaves.size(); ++i) {
    if (settled[i]) continue;
    walk_.pass.items.emplace_back(&rank, static_cast<std::uint16_t>(i));
  }
}

void SpaceWalker::MatchLeaves(Rank& rank, const std::vector<std::string>& names) {
  std::vector<std::uint16_t> there;
  for (const std::string& name : names) {
    const int index = LeafIndex(name);
    if (index >= 0) {
      there.push_back(static_cast<std::uint16_t>(index));
    } else {
      NoteUnopened(parts_.tree.PathOf(rank) + "/" + name, -ENOTDIR);
    }
  }
  std::sort(there.begin(), there.end());
  const SweepLock lock(parts_.mutex);
  parts_.tree.MatchLeaves(rank, there);
}

}  // namespace kvshelf::sweep
