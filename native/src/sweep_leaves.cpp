#include "sweep_leaves.h"

#include <algorithm>
#include <cerrno>

namespace kvshelf::sweep {
namespace {

constexpr int kUnchanged = 1;

}  // namespace

void LeafWalker::Run() {
  Pass& pass = walk_.pass;
  for (bool first = true;; first = false) {
    std::size_t item = 0;
    {
      const SweepLock lock(parts_.mutex);
      if (IsOver(first) || (pass.removing && HasEnough())) return;
      if (!pass.again.empty()) {
        item = pass.again.back();
        pass.again.pop_back();
      } else if (pass.next < pass.items.size()) {
        item = pass.next++;
      } else {
        return;
      }
    }
    const auto [rank, leaf] = pass.items[item];
    const bool complete = WalkLeaf(*rank, leaf);
    const SweepLock lock(parts_.mutex);
    ++walk_.report.folders;
    if (complete) {
      ++pass.done;
    } else {
      pass.again.push_back(item);
    }
  }
}

bool LeafWalker::WalkLeaf(Rank& rank, std::size_t position) {
  Leaf& leaf = rank.leaves[position];
  Found found;
  found.position = position;
  found.leaf = LeafName(leaf.index);
  const std::int64_t before = parts_.clock.Now();
  std::vector<std::string> names;
  struct stat status{};
  const int error = ListLeaf(rank, found, &status, &names);
  if (error == kUnchanged) return true;
  if (error < 0) {
    const bool gone = NoteUnopened(parts_.tree.PathOf(rank) + "/" + found.leaf, error);
    const SweepLock lock(parts_.mutex);
    if (gone) parts_.tree.Forget(rank, leaf);  // else what is known of it stays
    return true;
  }
  const bool complete = std::all_of(names.begin(), names.end(), [&](const std::string& name) {
    return LookAt(rank, found, name);
  });
  Commit(rank, found, complete);
  // A removal changes the folder's time: it is listed once more by the next scan. So is a folder of
  // which not all could be looked at: its time will not say when that is possible again.
  const std::int64_t mtime = Nanoseconds(status.st_mtim);
  const bool known = complete && !found.unseen && found.removed.files == 0;
  if (known && mtime < before - kRacy) leaf.mtime_ns = mtime;
  return complete;
}

int LeafWalker::ListLeaf(Rank& rank, Found& found, struct stat* status,
                         std::vector<std::string>* names) {
  int error = 0;
  const Folder folder = parts_.folders.Of(rank, parts_.tree.PathOf(rank), &error);
  if (folder == nullptr) return error;
  error = parts_.ops->StatAt(folder->get(), found.leaf.c_str(), status);
  if (error < 0) return error;
  if (NeedsNoList(rank, rank.leaves[found.position], *status)) return kUnchanged;
  error = parts_.folders.Open(folder->get(), found.leaf, status);
  if (error < 0) return error;
  found.folder = UniqueFd(error);
  return ListNames(found.folder.get(), names);
}

bool LeafWalker::LookAt(Rank& rank, Found& found, const std::string& name) {
  if (!Pace()) return false;
  struct stat file{};
  const bool ours = IsChunkName(found.leaf, name);
  const int error = ours ? parts_.ops->StatAt(found.folder.get(), name.c_str(), &file) : 0;
  if (error == -ENOENT || error == -ESTALE) return true;
  if (error < 0) {
    NoteFault(-error);
    found.unseen = true;
    return true;
  }
  ++found.looked;
  if (!ours || !parts_.folders.HasFile(file)) {
    NoteUnknown(found.foreign, parts_.tree.PathOf(rank) + "/" + found.leaf + "/" + name);
    return true;
  }
  if (walk_.pass.removing) return Judge(rank, found, name, file);
  const UseTime use = LastUse(file);
  found.kept.push_back({use.ns, file.st_size, use.reused, IsHeld(rank, name)});
  return true;
}

bool LeafWalker::Judge(Rank& rank, Found& found, const std::string& name, const struct stat& file) {
  const auto [used, use_class] = LastUse(file);
  const Cut& cut = walk_.pass.cuts[rank.name_space][use_class];
  if (IsHeld(rank, name)) {
    found.kept.push_back({used, file.st_size, use_class, true});
    return true;
  }
  if (used < cut.sure_before_ns) {
    {
      const SweepLock lock(parts_.mutex);
      if (HasEnough()) return false;
      Meet(1, file.st_size);
    }
    const int error = RemoveFile(rank, found.folder.get(), found.leaf, name, file);
    if (error == 0 || error == -ENOENT) {
      if (!walk_.pass.dry_run) {
        Amount& gone = error == 0 ? found.removed : found.vanished;
        gone.files += 1;
        gone.bytes += file.st_size;
        return true;
      }
    } else {
      const SweepLock lock(parts_.mutex);
      Meet(-1, -file.st_size);
    }
  } else if (used < cut.maybe_before_ns) {
    const auto width = static_cast<double>(cut.maybe_before_ns - cut.sure_before_ns);
    const double order = static_cast<double>(cut.maybe_before_ns - used) / width;
    found.candidates.push_back(
        {order, &rank, static_cast<std::uint16_t>(found.position), file.st_size, name});
  }
  found.kept.push_back({used, file.st_size, use_class, false});
  return true;
}

bool LeafWalker::IsHeld(const Rank& rank, const std::string& name) {
  const SweepLock lock(parts_.mutex);
  return parts_.refusals.Has(rank, name);
}

void LeafWalker::Commit(Rank& rank, Found& found, bool complete) {
  Pass& pass = walk_.pass;
  NamespaceState& state = parts_.tree.StateOf(rank);
  const SweepLock lock(parts_.mutex);
  walk_.report.files += found.looked;
  Leaf& leaf = rank.leaves[found.position];
  if (found.unseen) ++pass.unseen;
  const Amount gone{found.removed.files + found.vanished.files,
                    found.removed.bytes + found.vanished.bytes};
  Leaf now = leaf;
  now.mtime_ns = 0;
  if (complete) {
    now = {};
    now.index = leaf.index;
    now.seen = true;
    for (const Found::File& file : found.kept) {
      now.amount.files += 1;
      now.amount.bytes += file.bytes;
      now.oldest_ns = std::min(now.oldest_ns, file.used_ns);
      state.last_use_ns = std::max(state.last_use_ns, file.used_ns);
      if (pass.all && !file.held) {
        Histogram& histogram = pass.histograms[rank.name_space][file.use_class];
        histogram.Add(AgeBucket(pass.time_ns - file.used_ns), {1, file.bytes});
      }
    }
    for (const std::string& path : found.foreign.examples) NoteForeign(pass.foreign, path);
    pass.foreign.count += found.foreign.count - found.foreign.examples.size();
    if (pass.removing && leaf.seen && !found.unseen) {
      // What others have removed or stored here since it was listed last.
      Meet(leaf.amount.files - now.amount.files - gone.files,
           leaf.amount.bytes - now.amount.bytes - gone.bytes);
    }
    AddToBand(found);
  } else {
    now.amount.files -= std::min(leaf.amount.files, gone.files);
    now.amount.bytes -= std::min(leaf.amount.bytes, gone.bytes);
  }
  state.amount.files += now.amount.files - leaf.amount.files;
  state.amount.bytes += now.amount.bytes - leaf.amount.bytes;
  leaf = now;
}

void LeafWalker::AddToBand(Found& found) {
  std::vector<Candidate>& band = walk_.pass.band;
  for (Candidate& candidate : found.candidates) {
    band.push_back(std::move(candidate));
    std::push_heap(band.begin(), band.end());  // the one that goes last is in front
    if (band.size() <= parts_.config.band_files) continue;
    std::pop_heap(band.begin(), band.end());
    band.pop_back();
  }
}

}  // namespace kvshelf::sweep
