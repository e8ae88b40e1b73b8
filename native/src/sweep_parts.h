// What the threads of a sweep share, and the records that they work on.
//
// One mutex, sweep_mutex to clang, guards what several threads change: the counts of folders, a
// pass and a call's report. A namespace, a rank while it is opened and a leaf folder belong to the
// thread that took them. Nobody makes a system call with the mutex held.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kvshelf/file_ops.h"
#include "kvshelf/memory.h"
#include "kvshelf/shelf_sweep.h"
#include "kvshelf/thread_safety.h"
#include "kvshelf/use_time.h"

namespace kvshelf::sweep {

inline constexpr std::size_t kExamples = 8;
inline constexpr std::int64_t kSecond = 1'000'000'000;
// A folder that was changed so recently may change again without its time showing it: clocks of
// file systems tick in jiffies, some in seconds.
inline constexpr std::int64_t kRacy = 2 * kSecond;
using Clock = std::chrono::steady_clock;

// One name for the mutexes of all sweeps: no code handles two sweeps.
struct KVSHELF_CAPABILITY("mutex") SweepMutex {};
inline SweepMutex sweep_mutex;
#define SWEEP_LOCKED KVSHELF_REQUIRES(kvshelf::sweep::sweep_mutex)
#define SWEEP_GUARDED KVSHELF_GUARDED_BY(kvshelf::sweep::sweep_mutex)

class KVSHELF_SCOPED_CAPABILITY SweepLock {
 public:
  explicit SweepLock(std::mutex& mutex) KVSHELF_ACQUIRE(sweep_mutex) : lock_(mutex) {}
  ~SweepLock() KVSHELF_RELEASE() {}
  SweepLock(const SweepLock&) = delete;
  SweepLock& operator=(const SweepLock&) = delete;

 private:
  const std::lock_guard<std::mutex> lock_;
};

using Folder = std::shared_ptr<const UniqueFd>;

struct Leaf {
  std::uint16_t index = 0;  // its name, as a number
  bool seen = false;
  std::int64_t mtime_ns = 0;           // when it was listed; 0: list it again
  std::int64_t oldest_ns = INT64_MAX;  // no chunk in it was used earlier
  Amount amount;
};

struct Rank {
  std::size_t name_space = 0;
  std::uint32_t number = 0;
  bool gone = false;
  std::int64_t mtime_ns = 0;  // when it was listed; 0: list it again
  Folder folder;              // open, or null
  std::vector<Leaf> leaves;   // that are there, in order
};

struct Space {
  std::int64_t mtime_ns = 0;  // as a rank's
  std::vector<std::unique_ptr<Rank>> ranks;
};

// A file that goes if there is still need when all that surely go are gone.
struct Candidate {
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
struct Pass {
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
struct Found {
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

// One call's work.
struct Walk {
  Pass& pass;
  Amount need;
  Clock::time_point deadline;
  SweepReport report;
  std::unordered_map<Rank*, std::vector<std::string>> names;
};

std::string RankName(std::uint32_t number);
std::string LeafName(std::size_t index);
// All names in a folder but . and ..; 0 or -errno. Needs no further descriptor.
int ListNames(int folder, std::vector<std::string>* names);
void NoteForeign(Foreign& foreign, const std::string& path);

}  // namespace kvshelf::sweep
