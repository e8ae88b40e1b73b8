#include "sweep_band.h"

#include <cerrno>

namespace kvshelf::sweep {

void BandWalker::Run() {
  Pass& pass = walk_.pass;
  for (bool first = true;; first = false) {
    if (!Pace()) return;
    std::size_t index = 0;
    {
      const SweepLock lock(parts_.mutex);
      if (IsOver(first) || HasEnough() || pass.next == pass.band.size()) return;
      index = pass.next++;
      Meet(1, pass.band[index].bytes);
    }
    const Candidate& candidate = pass.band[index];
    if (Remove(candidate)) continue;
    const SweepLock lock(parts_.mutex);
    Meet(-1, -candidate.bytes);
  }
}

bool BandWalker::Remove(const Candidate& candidate) {
  Rank& rank = *candidate.rank;
  const std::string leaf_name = LeafName(rank.leaves[candidate.leaf].index);
  int error = 0;
  const Folder parent = parts_.folders.Of(rank, parts_.tree.PathOf(rank), &error);
  struct stat status{}, file{};
  const UniqueFd folder(parent != nullptr ? parts_.folders.Open(parent->get(), leaf_name, &status)
                                          : error);
  error = folder ? parts_.ops->StatAt(folder.get(), candidate.name.c_str(), &file) : folder.get();
  if (error >= 0) {
    if (!parts_.folders.HasFile(file)) return false;
    const UseTime use = LastUse(file);
    if (use.ns >= walk_.pass.cuts[rank.name_space][use.reused].maybe_before_ns) {
      const SweepLock lock(parts_.mutex);
      ++walk_.report.spared;
      return false;
    }
    error = RemoveFile(rank, folder.get(), leaf_name, candidate.name, file);
    if (walk_.pass.dry_run) return true;
  } else if (error != -ENOENT && error != -ESTALE) {
    NoteFault(-error);
  }
  if (error < 0 && error != -ENOENT && error != -ESTALE) return false;
  const SweepLock lock(parts_.mutex);
  Leaf& leaf = rank.leaves[candidate.leaf];
  leaf.mtime_ns = 0;
  for (Amount* amount : {&leaf.amount, &parts_.tree.StateOf(rank).amount}) {
    amount->files -= 1;
    amount->bytes -= candidate.bytes;
  }
  return true;
}

}  // namespace kvshelf::sweep
