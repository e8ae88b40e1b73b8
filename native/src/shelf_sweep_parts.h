// What the parts of ShelfSweep share: shelf_sweep.cpp, _walk.cpp and _remove.cpp.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kvshelf/shelf_sweep.h"
#include "kvshelf/use_time.h"

namespace kvshelf {

inline constexpr std::size_t kLeaves = 4096;  // three hex digits
inline constexpr std::size_t kExamples = 8;
inline constexpr std::int64_t kSecond = 1'000'000'000;
// A folder that was changed so recently may change again without its time showing it: clocks of
// file systems tick in jiffies, some in seconds.
inline constexpr std::int64_t kRacy = 2 * kSecond;
using Clock = std::chrono::steady_clock;

// A thread of a sweep runs for so long and rests for so long: a load of a chunk takes milliseconds.
// The longer rest is for a machine on which all processors have other work: four threads then ask
// for the time of one processor, together.
inline constexpr std::chrono::microseconds kBurst{500};
inline constexpr std::chrono::microseconds kRest{100};
inline constexpr std::chrono::microseconds kBusyRest{2000};
// `others`: threads that run or want to, but for those of the sweep.
constexpr std::chrono::microseconds RestFor(int others, int processors) {
  return others >= processors ? kBusyRest : kRest;
}
// Threads of this machine that run or want to; 0 if the system does not say (proc_loadavg(5)).
int RunnableThreads();

double SteadySeconds();
std::chrono::nanoseconds ThreadTime();  // that this thread has run on a processor
std::string LeafName(std::size_t index);
// All names in a folder but . and ..; 0 or -errno. Needs no further descriptor.
int ListNames(int folder, std::vector<std::string>* names);
void NoteForeign(Foreign& foreign, const std::string& path);

struct ShelfSweep::Leaf {
  std::uint16_t index = 0;  // its name, as a number
  bool seen = false;
  std::int64_t mtime_ns = 0;           // when it was listed; 0: list it again
  std::int64_t oldest_ns = INT64_MAX;  // no chunk in it was used earlier
  Amount amount;
};

struct ShelfSweep::Rank {
  std::size_t name_space = 0;
  std::uint32_t number = 0;
  bool gone = false;
  std::int64_t mtime_ns = 0;  // when it was listed; 0: list it again
  Folder folder;              // open, or null
  std::vector<Leaf> leaves;   // that are there, in order
};

struct ShelfSweep::Space {
  std::int64_t mtime_ns = 0;  // as a rank's
  std::vector<std::unique_ptr<Rank>> ranks;
};

// A file that goes if there is still need when all that surely go are gone.
struct ShelfSweep::Candidate {
  double order = 0;  // the largest goes first
  Rank* rank = nullptr;
  std::uint16_t leaf = 0;  // position
  std::int64_t bytes = 0;
  std::string name;

  bool operator<(const Candidate& other) const {
    return order != other.order ? order > other.order : name < other.name;
  }
};

// One walk over all leaf folders, over several calls. By the first two digits of leaf folders
// first: a part of a pass is a sample of every namespace, because names are digests.
struct ShelfSweep::Pass {
  std::vector<std::size_t> spaces;  // namespaces to open
  std::size_t next_space = 0;
  bool opened = false;                                 // all of them: `items` is complete
  std::vector<std::pair<Rank*, std::uint16_t>> items;  // ranks and positions in their leaves
  std::size_t next = 0;
  std::vector<std::size_t> again;  // items that were broken off
  std::size_t done = 0;
  std::int64_t time_ns = 0;

  bool all = false;  // a scan that makes histograms
  std::vector<Histograms> histograms;
  Foreign foreign;
  std::uint64_t unseen = 0;  // folders

  bool removing = false;
  bool dry_run = false;
  bool report_names = false;
  std::vector<Cuts> cuts;
  std::vector<Candidate> band;  // a heap while leaves are walked, sorted after
  bool in_band = false;
};

// What was found in one leaf folder.
struct ShelfSweep::Found {
  struct File {
    std::int64_t used_ns;
    std::int64_t bytes;
    std::size_t use_class;
    bool held;
  };
  std::size_t position = 0;  // in the rank's leaves
  std::string leaf;          // its name
  UniqueFd folder;
  std::vector<File> kept;
  std::vector<Candidate> candidates;
  Amount removed;   // by us
  Amount vanished;  // by another while we looked
  std::uint64_t looked = 0;
  bool unseen = false;  // storage did not say what one of the files is
  Foreign foreign;
};

// What a thread has worked without a rest. The kernel gives even the lowest priority its share of a
// processor, by the tick (4 ms at 250 Hz), and a load that waits then takes twice its time. A
// thread that rests earlier is out of the way: others wait for a burst at most.
class ShelfSweep::Burst {
 public:
  // `awake` counts the sweep's threads that do not rest.
  explicit Burst(std::atomic<int>& awake) : awake_(awake) { ++awake_; }
  ~Burst() { --awake_; }
  Burst(const Burst&) = delete;
  Burst& operator=(const Burst&) = delete;
  // Rests if the thread has run for long enough; while it waits for storage it does not run.
  void RestIfDue();

 private:
  std::atomic<int>& awake_;
  std::chrono::nanoseconds began_ = ThreadTime();
  Clock::time_point look_at_ = Clock::now() + kBurst;
};

// One call's work.
struct ShelfSweep::Walk {
  Pass& pass;
  SweepReport report;
  Clock::time_point deadline;
  Amount need;
  std::unordered_map<Rank*, std::vector<std::string>> names;
};

}  // namespace kvshelf
