// Many folders, few descriptors, little memory; and files that the file system does not let go.
#include <malloc.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <filesystem>

#include "sweep_fixture.h"

namespace kvshelf::testing {
namespace {

std::size_t OpenDescriptors() {
  const auto all = std::filesystem::directory_iterator("/proc/self/fd");
  return static_cast<std::size_t>(std::distance(all, {}));
}

// The process may have `count` descriptors more than it has now.
class FewDescriptors {
 public:
  explicit FewDescriptors(std::size_t count) {
    ::getrlimit(RLIMIT_NOFILE, &before_);
    rlimit few = before_;
    few.rlim_cur = OpenDescriptors() + count;
    ::setrlimit(RLIMIT_NOFILE, &few);
  }
  ~FewDescriptors() { ::setrlimit(RLIMIT_NOFILE, &before_); }

 private:
  rlimit before_{};
};

std::string SpaceName(int i) {
  char name[32];
  std::snprintf(name, sizeof(name), "tiny-%012x", i);
  return name;
}

// `spaces` namespaces of `ranks` ranks with one chunk each.
class WideShelf {
 public:
  WideShelf(int spaces, int ranks) {
    for (int i = 0; i < spaces; ++i) {
      names_.push_back(SpaceName(i));
      dir_.Write(names_.back() + "/namespace.json", "{}");
      for (int k = 0; k < ranks; ++k) AddChunk(i, k, i);
    }
  }
  void AddChunk(int space, int rank, int number) const {
    char name[64];
    std::snprintf(name, sizeof(name), "%03x%013x-g0.kv", number * 37 % 4096, number);
    const std::string rank_name = SpaceName(space) + "/r" + std::to_string(rank);
    const std::string path = rank_name + "/" + std::string(name, 3) + "/" + name;
    dir_.Write(path, std::string(kBytes, 'x'));
    SetTimes(dir_ / path, NowNs() - (number + 10) * kSecond, NowNs() - (number + 10) * kSecond);
  }
  void Age(const std::string& folder) const {
    SetTimes(dir_ / folder, NowNs(), NowNs() - 60 * kSecond);
  }
  const TempDir& dir() const { return dir_; }
  const std::vector<std::string>& names() const { return names_; }

 private:
  TempDir dir_;
  std::vector<std::string> names_;
};

struct WideSwept {
  explicit WideSwept(const WideShelf& shelf, SweepConfig config = {})
      : ops(std::make_shared<FaultOps>()), sweep(ops, shelf.dir().path(), config) {
    sweep.SetNamespaces(shelf.names());
  }
  Amount Known() const {
    Amount sum;
    for (const NamespaceState& each : sweep.namespaces()) {
      sum.files += each.amount.files;
      sum.bytes += each.amount.bytes;
    }
    return sum;
  }
  std::vector<Cuts> All() const {
    const Cut all{NowNs(), NowNs()};
    return std::vector<Cuts>(sweep.namespaces().size(), Cuts{all, all});
  }
  std::shared_ptr<FaultOps> ops;
  ShelfSweep sweep;
};

void ManyRanksNeedFewDescriptors() {
  const WideShelf shelf(60, 8);
  const std::size_t before = OpenDescriptors();
  const FewDescriptors few(40);
  std::atomic<std::size_t> most = 0;
  WideSwept swept(shelf, {.threads = 32});
  swept.ops->SetHook([&](Call call) {
    if (call == Call::kStat) most = std::max(most.load(), OpenDescriptors());
    return 0;
  });
  for (const bool all : {true, false}) {
    const SweepReport report = swept.sweep.Scan(all, kLong);
    CHECK(report.finished && report.faults.empty() && swept.sweep.unseen() == 0);
    CHECK(swept.Known().files == 480);
  }
  swept.sweep.BeginRemoval(swept.All(), false, true);
  const SweepReport report = swept.sweep.Remove({470, 0}, kLong);
  CHECK(report.finished && report.removed.files == 470 && report.faults.empty());
  CHECK(swept.Known().files == 10);
  CHECK(most > before && most < before + 16);
  CHECK(OpenDescriptors() <= before + 1);  // the root's: none is held between two passes
}

void MemoryOfANearlyEmptyRankIsSmall() {
  const int ranks = 400;
  const WideShelf shelf(ranks, 1);
  WideSwept swept(shelf);
  const std::size_t before = ::mallinfo2().uordblks;
  swept.sweep.Scan(true, kLong);
  swept.sweep.Scan(true, kLong);
  CHECK(swept.Known().files == ranks);
  CHECK(::mallinfo2().uordblks - before < ranks * 2048);
}

// What is kept open is given back before a lack of descriptors is a fault.
void AMomentWithoutDescriptorsIsNoFault() {
  const WideShelf shelf(4, 2);
  WideSwept swept(shelf, {.threads = 1});
  int opens = 0;
  swept.ops->SetHook(
      [&](Call call) { return call == Call::kOpen && ++opens % 2 == 1 ? -EMFILE : 0; });
  const SweepReport report = swept.sweep.Scan(true, kLong);
  CHECK(report.finished && report.faults.empty() && swept.Known().files == 8);
}

void WithoutDescriptorsTheSweepSaysThatItIsBlind() {
  for (const int error : {EMFILE, ENFILE, EACCES, EIO}) {
    const WideShelf shelf(4, 2);
    WideSwept swept(shelf);
    swept.ops->SetHook(Fail(Call::kOpen, error));
    SweepReport report = swept.sweep.Scan(true, kLong);
    CHECK(report.finished && report.faults[error] == 4 && swept.sweep.unseen() == 4);
    swept.ops->SetHook(nullptr);
    CHECK(swept.sweep.Scan(false, kLong).finished);
    CHECK(swept.sweep.unseen() == 0 && swept.Known().files == 8);
    // What is known stays known.
    swept.ops->SetHook(Fail(Call::kOpen, error));
    swept.sweep.Scan(false, kLong);
    CHECK(swept.sweep.unseen() == 4 && swept.Known().files == 8);
  }
}

// A folder that has not changed is not listed again; one that has is.
void FoldersThatComeAndGoAreSeen() {
  WideShelf shelf(3, 2);
  WideSwept swept(shelf);
  for (const std::string& name : shelf.names()) {
    for (const char* const rank : {"/r0", "/r1", ""}) shelf.Age(name + rank);
  }
  swept.sweep.Scan(true, kLong);
  swept.sweep.Scan(false, kLong);
  shelf.AddChunk(0, 0, 1000);
  shelf.AddChunk(1, 5, 1001);
  swept.sweep.Scan(false, kLong);
  CHECK(swept.Known().files == 8);
  std::filesystem::remove_all(shelf.dir() / (shelf.names()[1] + "/r0"));
  std::filesystem::remove_all(shelf.dir() / (shelf.names()[2] + "/r1"));
  swept.sweep.Scan(false, kLong);
  CHECK(swept.Known().files == 6);
  std::filesystem::remove_all(shelf.dir() / shelf.names()[2]);
  swept.sweep.SetNamespaces({shelf.names()[0], shelf.names()[1]});
  swept.sweep.Scan(false, kLong);
  CHECK(swept.Known().files == 5 && swept.Known().bytes == 5 * kBytes);
  std::int64_t counted = 0;
  for (const Histogram& each : swept.sweep.histograms()[2]) counted += each.rows().size();
  CHECK(counted == 0);
}

void WorkIsDividedIntoCalls() {
  const WideShelf shelf(50, 2);
  WideSwept swept(shelf, {.threads = 1});
  int calls = 1;
  while (!swept.sweep.Scan(true, 0).finished) ++calls;
  CHECK(calls > 50 && swept.Known().files == 100);
  swept.sweep.BeginRemoval(swept.All(), false, false);
  calls = 1;
  Amount need{100, 0};
  for (bool finished = false; !finished; ++calls) {
    const SweepReport report = swept.sweep.Remove(need, 0);
    need.files -= report.removed.files;
    finished = report.finished;
  }
  CHECK(calls > 50 && swept.Known().files == 0);
}

std::int64_t Counted(const ShelfSweep& sweep) {
  std::int64_t files = 0;
  for (const Histogram& each : sweep.histograms()[0]) {
    for (const Histogram::Row& row : each.rows()) files += row.amount.files;
  }
  return files;
}

// `band`: whether the files only maybe go, so that they are remembered first.
void WhatIsRefusedIsHeld(bool band) {
  Shelf shelf(100);
  Swept swept(shelf, {.threads = 1});
  swept.sweep.Scan(true, kLong);
  int unlinks = 0;
  swept.ops->SetHook([&](Call call) {
    if (call != Call::kUnlink) return 0;
    ++unlinks;
    return unlinks <= 30 ? -EPERM : unlinks <= 40 ? -EROFS : 0;
  });
  const std::int64_t never = shelf.Used(5000);
  const auto cuts = band ? CutAt(never, NowNs()) : CutAt(NowNs(), never);
  swept.sweep.BeginRemoval(cuts, false, false);
  SweepReport report = swept.sweep.Remove({70, 0}, kLong);
  CHECK(report.finished && report.removed.files == 60 && report.refused == 40);
  CHECK(report.faults[EPERM] == 30 && report.faults[EROFS] == 10 && unlinks == 100);
  Held held = swept.sweep.held();
  CHECK(held.amount.files == 40 && held.amount.bytes == 40 * kBytes);
  CHECK(held.by_errno[EPERM] == 30 && held.by_errno[EROFS] == 10 && held.examples.size() == 8);
  for (const std::string& path : held.examples) CHECK(shelf.dir().Exists(path));
  // They count, and are no candidates: neither for the plan nor for the walk.
  CHECK(swept.sweep.namespaces()[0].amount.files == 40 && Counted(swept.sweep) == 0);
  swept.sweep.BeginRemoval(cuts, false, false);
  report = swept.sweep.Remove({10, 0}, kLong);
  CHECK(report.finished && report.removed.files == 0 && report.faults.empty() && unlinks == 100);
  swept.sweep.Scan(true, kLong);
  CHECK(swept.sweep.namespaces()[0].amount.files == 40 && Counted(swept.sweep) == 0);
  swept.sweep.ReleaseHeld();
  CHECK(swept.sweep.held().amount.files == 0 && Counted(swept.sweep) == 40);
  swept.sweep.BeginRemoval(cuts, false, false);
  CHECK(swept.sweep.Remove({10, 0}, kLong).removed.files == 10);
  CHECK(Counted(swept.sweep) == 30);
}

void WhatSurelyGoesAndIsRefusedIsHeld() { WhatIsRefusedIsHeld(false); }
void ACandidateThatIsRefusedIsHeld() { WhatIsRefusedIsHeld(true); }

// More than are remembered: each attempt still takes one out of the plan, so that rounds end.
void MemoryOfHeldFilesIsBounded() {
  Shelf shelf(100);
  Swept swept(shelf, {.threads = 1, .held_files = 20});
  swept.sweep.Scan(true, kLong);
  swept.ops->SetHook(Fail(Call::kUnlink, EACCES));
  swept.sweep.BeginRemoval(CutAt(NowNs(), NowNs()), false, false);
  SweepReport report = swept.sweep.Remove({100, 0}, kLong);
  CHECK(report.finished && report.refused == 100 && report.faults[EACCES] == 100);
  CHECK(swept.sweep.held().amount.files == 20 && Counted(swept.sweep) == 0);
}

}  // namespace
}  // namespace kvshelf::testing

int main() {
  using namespace kvshelf::testing;
  return RunTests({
      {"many ranks need few descriptors", ManyRanksNeedFewDescriptors},
      {"memory of a nearly empty rank is small", MemoryOfANearlyEmptyRankIsSmall},
      {"a moment without descriptors is no fault", AMomentWithoutDescriptorsIsNoFault},
      {"without descriptors it says so", WithoutDescriptorsTheSweepSaysThatItIsBlind},
      {"folders that come and go are seen", FoldersThatComeAndGoAreSeen},
      {"work is divided into calls", WorkIsDividedIntoCalls},
      {"what surely goes and is refused is held", WhatSurelyGoesAndIsRefusedIsHeld},
      {"a candidate that is refused is held", ACandidateThatIsRefusedIsHeld},
      {"memory of held files is bounded", MemoryOfHeldFilesIsBounded},
  });
}
