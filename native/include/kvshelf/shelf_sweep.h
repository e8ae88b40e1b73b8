// Walks a shelf's chunk files: how many there are and when they were last used; and removes those
// that a caller has chosen by their time of use. What is kept in memory is bounded by folders and
// time buckets, never by files. docs/explain/eviction.md says how the parts work together.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kvshelf/file_ops.h"

namespace kvshelf {
namespace sweep {
struct Parts;
struct Pass;
}  // namespace sweep

// Whether `name` is a chunk file's in the folder `leaf`, as src/kvshelf/disk/layout.py makes them.
bool IsChunkName(std::string_view leaf, std::string_view name);
// The number of a rank's folder, such as "r0"; -1 if it is none.
std::int64_t RankOf(std::string_view name);

// Buckets of ages: 2^20 ns wide below 0.27 s, at most 1/128 of the age above. The last one begins
// at 20 years and takes all that is older; the first one takes times in the future.
inline constexpr std::size_t kAgeBuckets = 4352;
std::size_t AgeBucket(std::int64_t age_ns);
std::int64_t AgeBucketBegin(std::size_t bucket);

struct Amount {
  std::int64_t files = 0;
  std::int64_t bytes = 0;
};

// Chunks by bucket of age. Takes memory for the buckets that hold chunks only: a shelf may have
// 100,000 namespaces with a few chunks each.
class Histogram {
 public:
  struct Row {
    std::size_t bucket = 0;
    Amount amount;
  };
  // Adds to a bucket, or takes from it; no bucket falls below 0.
  void Add(std::size_t bucket, Amount amount);
  Amount operator[](std::size_t bucket) const;
  const std::vector<Row>& rows() const { return rows_; }  // in order of buckets

 private:
  std::vector<Row> rows_;
};

// Classes of a namespace's chunks: 0 not used since they were stored, 1 used again.
inline constexpr std::size_t kUseClasses = 2;
using Histograms = std::array<Histogram, kUseClasses>;

// Which chunks of a class go: all that were last used before `sure`; and of those last used before
// `maybe` as many as are needed, the ones nearest to `sure` first. Nanoseconds since 1970.
struct Cut {
  std::int64_t sure_before_ns = INT64_MIN;
  std::int64_t maybe_before_ns = INT64_MIN;
};
using Cuts = std::array<Cut, kUseClasses>;

struct NamespaceState {
  std::string folder;
  bool listed = true;  // false: it is no namespace any more
  Amount amount;
  std::int64_t last_use_ns = 0;  // the latest that was seen
};

// Names of files of one rank that were removed.
struct RemovedNames {
  std::size_t name_space = 0;
  std::uint32_t rank = 0;
  std::vector<std::string> names;
};

// What one call did.
struct SweepReport {
  bool finished = false;  // the pass is through; else the next call goes on with it
  std::uint64_t folders = 0;
  std::uint64_t files = 0;  // that were looked at, one by one
  Amount removed;
  std::uint64_t spared = 0;   // were to go, but had been used since the pass first saw them
  std::uint64_t refused = 0;  // were to go, but the file system refused; they are held from now on
  std::map<int, std::uint64_t> faults;  // by errno
  std::vector<RemovedNames> names;
};

// What lies beneath the root and is no chunk of a namespace.
struct Foreign {
  std::uint64_t count = 0;
  std::vector<std::string> examples;  // paths beneath the root, a few
};

// Chunk files whose removal was refused. They count, and stay out of the plan until ReleaseHeld.
struct Held {
  Amount amount;
  std::map<int, std::uint64_t> by_errno;
  std::vector<std::string> examples;  // paths beneath the root, a few
};

// Names that file systems, desktops and scanners put into any folder: neither ours nor anybody's
// data. In lower case; src/kvshelf/disk/junk.py has the list.
struct Junk {
  std::vector<std::string> names;
  std::vector<std::string> prefixes;
  std::vector<std::string> suffixes;

  // Whether the last component of `path` is such a name.
  bool Has(std::string_view path) const;
};

struct SweepConfig {
  unsigned threads = 4;
  double files_per_second = 0;         // stats and removals together; 0: no limit
  std::size_t band_files = 131072;     // candidates between `sure` and `maybe` that are remembered
  std::uint64_t removals_max = 16384;  // a call returns after so many, to report their names
  std::size_t held_files = 131072;     // that are remembered; others are tried again and again
};

// One thread calls; Stop may be called from any. Calls work on threads of their own, of low
// priority, and return when these are done. `seconds_max` is looked at between two folders.
class ShelfSweep {
 public:
  // `junk` is not counted as foreign.
  // Throws std::system_error if `root` cannot be opened as a directory.
  ShelfSweep(std::shared_ptr<FileOps> ops, const std::string& root, SweepConfig config,
             Junk junk = {});
  ~ShelfSweep();

  // By which ages count: the file system's, by FileClock::Set. Any thread.
  void SetClock(std::int64_t ahead_ns);
  // The folders that are namespaces. Each keeps the index that it had first.
  void SetNamespaces(const std::vector<std::string>& folders);

  // Lists the folders whose modification time has changed; or all, and makes the histograms anew.
  SweepReport Scan(bool all, double seconds_max);
  // Begins to remove, with one Cuts a namespace. `dry_run` only counts.
  void BeginRemoval(std::vector<Cuts> cuts, bool dry_run, bool report_names);
  // Goes on with it until `need` is met in files and in bytes, whoever frees them.
  SweepReport Remove(Amount need, double seconds_max);
  // From now on calls return within 100 ms, unless the storage hangs.
  void Stop();

  const std::vector<NamespaceState>& namespaces() const;
  // Of the last complete scan of all, or of the first one while it is in progress.
  const std::vector<Histograms>& histograms() const;
  std::int64_t histogram_time_ns() const;
  // The share of the folders that the histograms cover.
  double coverage() const;
  // Of the same scan.
  const Foreign& foreign() const;
  // Folders that the last finished scan could not look into: what lies in them may not be known.
  std::uint64_t unseen() const { return unseen_; }
  const Held& held() const;
  // Lets removal try again what was refused. Call it while no scan of all is in progress.
  void ReleaseHeld();

 private:
  std::unique_ptr<sweep::Pass> BeginPass(bool all);
  // The pass whose histograms count; null: none was begun.
  const sweep::Pass* Counted() const;

  const std::unique_ptr<sweep::Parts> parts_;
  std::unique_ptr<sweep::Pass> scan_;     // in progress
  std::unique_ptr<sweep::Pass> removal_;  // in progress
  std::uint64_t unseen_ = 0;
};

}  // namespace kvshelf
