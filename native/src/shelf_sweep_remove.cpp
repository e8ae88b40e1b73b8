// Removal: which files go, and that no more go than are needed.
#include <algorithm>
#include <cerrno>
#include <climits>
#include <functional>

#include "shelf_sweep_parts.h"

namespace kvshelf {
namespace {

std::uint64_t HashOf(std::size_t name_space, std::uint32_t rank, const std::string& name) {
  constexpr std::uint64_t kOdd = 0x9e3779b97f4a7c15;
  const std::uint64_t folder = (static_cast<std::uint64_t>(name_space) << 32 | rank) * kOdd;
  return (std::hash<std::string>{}(name) ^ folder) * kOdd;
}

}  // namespace

void ShelfSweep::BeginRemoval(std::vector<Cuts> cuts, bool dry_run, bool report_names) {
  scan_ = nullptr;
  removal_ = nullptr;
  removal_ = BeginPass(false);
  removal_->removing = true;
  removal_->dry_run = dry_run;
  removal_->report_names = report_names;
  cuts.resize(namespaces_.size());  // those that are new keep all
  removal_->cuts = std::move(cuts);
}

SweepReport ShelfSweep::Remove(Amount need, double seconds_max) {
  SweepReport nothing;
  nothing.finished = true;
  if (removal_ == nullptr) return nothing;
  Pass& pass = *removal_;
  const auto span = std::chrono::duration<double>(seconds_max);
  Walk walk{pass, {}, Clock::now() + std::chrono::duration_cast<Clock::duration>(span), need, {}};
  if (Open(walk) && !pass.in_band) {
    Run(walk, pass.items.size(), &ShelfSweep::WalkLeaves);
    if (pass.done == pass.items.size()) {
      pass.in_band = true;
      std::sort(pass.band.begin(), pass.band.end());
      pass.next = 0;
    }
  }
  if (pass.in_band) Run(walk, pass.band.size() - pass.next, &ShelfSweep::WalkBand);
  const bool met = walk.need.files <= 0 && walk.need.bytes <= 0;
  walk.report.finished = met || (pass.in_band && pass.next == pass.band.size());
  for (auto& [rank, names] : walk.names) {
    walk.report.names.push_back({rank->name_space, rank->number, std::move(names)});
  }
  if (walk.report.finished) {
    removal_ = nullptr;
    CloseKept();
  }
  return std::move(walk.report);
}

// Whether a call has done enough.
bool ShelfSweep::Enough(const Walk& walk) const {
  return (walk.need.files <= 0 && walk.need.bytes <= 0) ||
         static_cast<std::uint64_t>(walk.report.removed.files) >= config_.removals_max;
}

// Whether nothing of a folder that has not changed can be old enough: uses only make it younger.
bool ShelfSweep::Spares(const Walk& walk, const Rank& rank, const Leaf& leaf) const {
  const Cuts& cuts = walk.pass.cuts[rank.name_space];
  return std::all_of(cuts.begin(), cuts.end(), [&](const Cut& cut) {
    return leaf.oldest_ns >= std::max(cut.sure_before_ns, cut.maybe_before_ns);
  });
}

// Removes the file, remembers it or keeps it; false if the walk is to be broken off.
bool ShelfSweep::Judge(Walk& walk, Rank& rank, Found& found, const std::string& name,
                       const struct stat& file) {
  const auto [used, use_class] = LastUse(file);
  const Cut& cut = walk.pass.cuts[rank.name_space][use_class];
  if (IsHeld(rank, name)) {
    found.kept.push_back({used, file.st_size, use_class, true});
    return true;
  }
  if (used < cut.sure_before_ns) {
    {
      const LockGuard lock(mutex_);
      if (Enough(walk)) return false;
      walk.need.files -= 1;
      walk.need.bytes -= file.st_size;
    }
    const int error = RemoveFile(walk, rank, found.folder.get(), found.leaf, name, file);
    if (error == 0 || error == -ENOENT) {
      if (!walk.pass.dry_run) {
        Amount& gone = error == 0 ? found.removed : found.vanished;
        gone.files += 1;
        gone.bytes += file.st_size;
        return true;
      }
    } else {
      const LockGuard lock(mutex_);
      walk.need.files += 1;
      walk.need.bytes += file.st_size;
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

void ShelfSweep::AddToBand(Pass& pass, Found& found) {
  for (Candidate& candidate : found.candidates) {
    pass.band.push_back(std::move(candidate));
    std::push_heap(pass.band.begin(), pass.band.end());  // the one that goes last is in front
    if (pass.band.size() <= config_.band_files) continue;
    std::pop_heap(pass.band.begin(), pass.band.end());
    pass.band.pop_back();
  }
}

void ShelfSweep::WalkBand(Walk& walk) {
  Pass& pass = walk.pass;
  Burst burst(awake_);
  for (bool first = true;; first = false) {
    if (!Pace(burst)) return;
    std::size_t index = 0;
    {
      const LockGuard lock(mutex_);
      if (IsOver(walk, first) || Enough(walk) || pass.next == pass.band.size()) return;
      index = pass.next++;
      walk.need.files -= 1;
      walk.need.bytes -= pass.band[index].bytes;
    }
    const Candidate& candidate = pass.band[index];
    if (RemoveCandidate(walk, candidate)) continue;
    const LockGuard lock(mutex_);
    walk.need.files += 1;
    walk.need.bytes += candidate.bytes;
  }
}

// Looks at the file once more: since the walk it may have been used, or removed by another, which
// meets the need as well. False if it stays.
bool ShelfSweep::RemoveCandidate(Walk& walk, const Candidate& candidate) {
  Rank& rank = *candidate.rank;
  const std::string leaf_name = LeafName(rank.leaves[candidate.leaf].index);
  int error = 0;
  const Folder parent = FolderOf(rank, &error);
  struct stat status{}, file{};
  const UniqueFd folder(parent != nullptr ? OpenFolder(parent->get(), leaf_name, &status) : error);
  error = folder ? ops_->StatAt(folder.get(), candidate.name.c_str(), &file) : folder.get();
  if (error >= 0) {
    if (!S_ISREG(file.st_mode) || file.st_dev != device_) return false;
    const UseTime use = LastUse(file);
    if (use.ns >= walk.pass.cuts[rank.name_space][use.reused].maybe_before_ns) {
      const LockGuard lock(mutex_);
      ++walk.report.spared;
      return false;
    }
    error = RemoveFile(walk, rank, folder.get(), leaf_name, candidate.name, file);
    if (walk.pass.dry_run) return true;
  } else if (error != -ENOENT && error != -ESTALE) {
    Fault(walk, -error);
  }
  if (error < 0 && error != -ENOENT && error != -ESTALE) return false;
  const LockGuard lock(mutex_);
  Leaf& leaf = rank.leaves[candidate.leaf];
  leaf.mtime_ns = 0;
  for (Amount* amount : {&leaf.amount, &namespaces_[rank.name_space].amount}) {
    amount->files -= 1;
    amount->bytes -= candidate.bytes;
  }
  return true;
}

// 0, -ENOENT if another was faster (its removal meets the need as well), or -errno.
int ShelfSweep::RemoveFile(Walk& walk, Rank& rank, int folder, const std::string& leaf,
                           const std::string& name, const struct stat& file) {
  int error = walk.pass.dry_run ? 0 : ops_->UnlinkAt(folder, name.c_str());
  if (error == -ESTALE) error = -ENOENT;
  const LockGuard lock(mutex_);
  if (error == 0) {
    walk.report.removed.files += 1;
    walk.report.removed.bytes += file.st_size;
    if (walk.pass.report_names) walk.names[&rank].push_back(name);
  }
  if (!walk.pass.dry_run) Uncount(rank, file);  // refused, it is no candidate either
  if (error < 0 && error != -ENOENT) {
    ++walk.report.faults[-error];
    ++walk.report.refused;
    Hold(rank, leaf, name, file, -error);
  }
  return error;
}

// Remembers a file whose removal was refused.
void ShelfSweep::Hold(const Rank& rank, const std::string& leaf, const std::string& name,
                      const struct stat& file, int error) {
  if (refused_.size() >= config_.held_files) return;
  const UseTime use = LastUse(file);
  const Refused refused{rank.name_space, use.reused, use.ns, file.st_size};
  if (!refused_.try_emplace(HashOf(rank.name_space, rank.number, name), refused).second) return;
  held_.amount.files += 1;
  held_.amount.bytes += file.st_size;
  ++held_.by_errno[error];
  if (held_.examples.size() < kExamples) {
    held_.examples.push_back(PathOf(rank) + "/" + leaf + "/" + name);
  }
}

bool ShelfSweep::IsHeld(const Rank& rank, const std::string& name) {
  const LockGuard lock(mutex_);
  return !refused_.empty() && refused_.contains(HashOf(rank.name_space, rank.number, name));
}

void ShelfSweep::ReleaseHeld() {
  for (const auto& [hash, file] : refused_) {
    const bool counts = complete_ != nullptr && file.name_space < complete_->histograms.size();
    if (!counts || !namespaces_[file.name_space].listed) continue;
    const std::size_t bucket = AgeBucket(complete_->time_ns - file.used_ns);
    complete_->histograms[file.name_space][file.use_class].Add(bucket, {1, file.bytes});
  }
  refused_.clear();
  held_ = {};
}

}  // namespace kvshelf
