// The leaf folders of a pass: listed, looked at, counted.
#include <algorithm>
#include <cerrno>
#include <thread>

#include "shelf_sweep_parts.h"

namespace kvshelf {
namespace {

// Being ahead of the rate by less than this is not worth a sleep; sleeps are no longer than the
// other, so that Stop is obeyed in time.
constexpr double kPaceSlackSeconds = 0.005;
constexpr double kPaceSleepSeconds = 0.02;

constexpr int kUnchanged = 1;

}  // namespace

void ShelfSweep::WalkLeaves(Walk& walk) {
  Pass& pass = walk.pass;
  Burst burst(awake_);
  for (bool first = true;; first = false) {
    std::size_t item = 0;
    {
      const LockGuard lock(mutex_);
      if (IsOver(walk, first) || (pass.removing && Enough(walk))) return;
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
    const bool complete = WalkLeaf(walk, burst, *rank, leaf);
    const LockGuard lock(mutex_);
    ++walk.report.folders;
    if (complete) {
      ++pass.done;
    } else {
      pass.again.push_back(item);
    }
  }
}

// False if it was broken off and is to be walked again.
bool ShelfSweep::WalkLeaf(Walk& walk, Burst& burst, Rank& rank, std::size_t position) {
  Leaf& leaf = rank.leaves[position];
  Found found;
  found.position = position;
  found.leaf = LeafName(leaf.index);
  const std::int64_t before = clock_.Now();
  std::vector<std::string> names;
  struct stat status{};
  const int error = ListLeaf(walk, rank, found, &status, &names);
  if (error == kUnchanged) return true;
  if (error < 0) {
    const bool gone = NoteUnopened(walk, PathOf(rank) + "/" + found.leaf, error);
    const LockGuard lock(mutex_);
    if (gone) Forget(rank, leaf);  // else what is known of it stays
    return true;
  }
  const bool complete = std::all_of(names.begin(), names.end(), [&](const std::string& name) {
    return LookAt(walk, burst, rank, found, name);
  });
  Commit(walk, rank, found, complete);
  // A removal changes the folder's time: it is listed once more by the next scan. So is a folder of
  // which not all could be looked at: its time will not say when that is possible again.
  const std::int64_t mtime = Nanoseconds(status.st_mtim);
  const bool known = complete && !found.unseen && found.removed.files == 0;
  if (known && mtime < before - kRacy) leaf.mtime_ns = mtime;
  return complete;
}

// Whether what is known of a leaf folder is all that the pass wants.
bool ShelfSweep::NeedsNoList(const Walk& walk, const Rank& rank, const Leaf& leaf,
                             const struct stat& status) const {
  if (leaf.mtime_ns == 0 || leaf.mtime_ns != Nanoseconds(status.st_mtim)) return false;
  return walk.pass.removing ? Spares(walk, rank, leaf) : !walk.pass.all;
}

// 0, kUnchanged if the names need not be known, or -errno.
int ShelfSweep::ListLeaf(Walk& walk, Rank& rank, Found& found, struct stat* status,
                         std::vector<std::string>* names) {
  int error = 0;
  const Folder folder = FolderOf(rank, &error);
  if (folder == nullptr) return error;
  error = ops_->StatAt(folder->get(), found.leaf.c_str(), status);
  if (error < 0) return error;
  if (NeedsNoList(walk, rank, rank.leaves[found.position], *status)) return kUnchanged;
  error = OpenFolder(folder->get(), found.leaf, status);
  if (error < 0) return error;
  found.folder = UniqueFd(error);
  return ListNames(found.folder.get(), names);
}

// False if the walk is to be broken off.
bool ShelfSweep::LookAt(Walk& walk, Burst& burst, Rank& rank, Found& found,
                        const std::string& name) {
  if (!Pace(burst)) return false;
  struct stat file{};
  const bool ours = IsChunkName(found.leaf, name);
  const int error = ours ? ops_->StatAt(found.folder.get(), name.c_str(), &file) : 0;
  if (error == -ENOENT || error == -ESTALE) return true;
  if (error < 0) {
    Fault(walk, -error);
    found.unseen = true;
    return true;
  }
  ++found.looked;
  if (!ours || !S_ISREG(file.st_mode) || file.st_dev != device_) {
    NoteUnknown(found.foreign, PathOf(rank) + "/" + found.leaf + "/" + name);
    return true;
  }
  if (walk.pass.removing && !Judge(walk, rank, found, name, file)) return false;
  if (!walk.pass.removing) {
    const bool held = IsHeld(rank, name);
    const UseTime use = LastUse(file);
    found.kept.push_back({use.ns, file.st_size, use.reused, held});
  }
  return true;
}

// Makes what was found in a folder what is known of it.
void ShelfSweep::Commit(Walk& walk, Rank& rank, Found& found, bool complete) {
  Pass& pass = walk.pass;
  NamespaceState& state = namespaces_[rank.name_space];
  const LockGuard lock(mutex_);
  walk.report.files += found.looked;
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
      walk.need.files -= leaf.amount.files - now.amount.files - gone.files;
      walk.need.bytes -= leaf.amount.bytes - now.amount.bytes - gone.bytes;
    }
    AddToBand(pass, found);
  } else {
    now.amount.files -= std::min(leaf.amount.files, gone.files);
    now.amount.bytes -= std::min(leaf.amount.bytes, gone.bytes);
  }
  state.amount.files += now.amount.files - leaf.amount.files;
  state.amount.bytes += now.amount.bytes - leaf.amount.bytes;
  leaf = now;
}

void ShelfSweep::Burst::RestIfDue() {
  const Clock::time_point now = Clock::now();
  if (now < look_at_) return;
  const std::chrono::nanoseconds used = ThreadTime() - began_;
  look_at_ = now + kBurst - used;
  if (used < kBurst) return;
  const int processors = static_cast<int>(std::thread::hardware_concurrency());
  const int others = RunnableThreads() - awake_.fetch_sub(1);
  std::this_thread::sleep_for(RestFor(others, processors));
  ++awake_;
  began_ = ThreadTime();
  look_at_ = Clock::now() + kBurst;
}

// Waits until the rate allows the next file; false if all is to stop.
bool ShelfSweep::Pace(Burst& burst) {
  if (stop_.load(std::memory_order_relaxed)) return false;
  burst.RestIfDue();
  if (config_.files_per_second <= 0) return true;
  double ahead = 0;
  {
    const LockGuard lock(mutex_);
    const double now = SteadySeconds();
    next_file_seconds_ = std::max(next_file_seconds_, now) + 1 / config_.files_per_second;
    ahead = next_file_seconds_ - now;
  }
  while (ahead > kPaceSlackSeconds && !stop_) {
    const double part = std::min(ahead, kPaceSleepSeconds);
    std::this_thread::sleep_for(std::chrono::duration<double>(part));
    ahead -= part;
  }
  return !stop_;
}

void ShelfSweep::Fault(Walk& walk, int error) {
  const LockGuard lock(mutex_);
  ++walk.report.faults[error];
}

// Called with every file that we removed, so that the histograms stay near to the truth.
void ShelfSweep::Uncount(const Rank& rank, const struct stat& file) {
  if (complete_ == nullptr || rank.name_space >= complete_->histograms.size()) return;
  const UseTime use = LastUse(file);
  const std::int64_t age = complete_->time_ns - use.ns;
  complete_->histograms[rank.name_space][use.reused].Add(AgeBucket(age), {-1, -file.st_size});
}

}  // namespace kvshelf
