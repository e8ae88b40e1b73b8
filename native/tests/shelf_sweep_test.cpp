// Counting and removing chunk files, with system calls that fail or come between.
#include "kvshelf/shelf_sweep.h"

#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <ctime>
#include <thread>

#include "sweep_fixture.h"

namespace kvshelf::testing {
namespace {

void CountsWhatThereIs() {
  Shelf shelf(500);
  Swept swept(shelf);
  const SweepReport report = swept.sweep.Scan(true, kLong);
  CHECK(report.finished && report.files == 500 && report.faults.empty());
  const NamespaceState& state = swept.sweep.namespaces()[0];
  CHECK(state.amount.files == 500 && state.amount.bytes == 500 * kBytes);
  CHECK(state.last_use_ns == shelf.Used(0));
  const Histograms& histograms = swept.sweep.histograms()[0];
  for (std::size_t use = 0; use < kUseClasses; ++use) {
    std::int64_t files = 0;
    for (std::size_t i = 0; i < kAgeBuckets; ++i) {
      files += histograms[use][i].files;
      if (histograms[use][i].files == 0) continue;
      // The oldest is 509 s, and as much older as this test is slow.
      CHECK(AgeBucketBegin(i) < 700 * kSecond && AgeBucketBegin(i + 1) > 9 * kSecond);
    }
    CHECK(files == 250);
  }
  CHECK(swept.sweep.coverage() == 1);
}

void UnchangedFoldersAreNotListed() {
  Shelf shelf(200);
  Swept swept(shelf);
  swept.sweep.Scan(true, kLong);
  // Folders that have just changed are listed again: their times may not show another change.
  CHECK(swept.sweep.Scan(false, kLong).files > 0);
  for (const auto& leaf : std::filesystem::directory_iterator(shelf.dir() / (kSpace + "/r0"))) {
    SetTimes(leaf.path(), NowNs(), NowNs() - 60 * kSecond);
  }
  CHECK(swept.sweep.Scan(false, kLong).files == 200);
  CHECK(swept.sweep.Scan(false, kLong).files == 0);
  shelf.Add(1000);
  std::filesystem::remove_all(std::filesystem::path(shelf.dir() / Shelf::Name(5)).parent_path());
  swept.sweep.Scan(false, kLong);
  CHECK(swept.sweep.namespaces()[0].amount.files == 200);
  std::filesystem::remove_all(shelf.dir() / (kSpace + "/r0"));
  swept.sweep.Scan(false, kLong);
  CHECK(swept.sweep.namespaces()[0].amount.files == 0);
}

void RemovesExactlyTheNeed() {
  Shelf shelf(2000);
  Swept swept(shelf, {.threads = 8});
  swept.sweep.Scan(true, kLong);
  // All may go, none surely: by order of age, over many calls.
  swept.sweep.BeginRemoval(CutAt(shelf.Used(5000), NowNs()), false, true);
  const SweepReport report = swept.sweep.Remove({0, 700 * kBytes - 1}, kLong);
  CHECK(report.finished && report.removed.files == 700);
  CHECK(shelf.Count(0, 1300) == 1300 && shelf.Count(1300, 2000) == 0);
  CHECK(report.names.size() == 1 && report.names[0].names.size() == 700);
  CHECK(swept.sweep.namespaces()[0].amount.files == 1300);
  // Those that surely go need no order; no more than needed go of them either.
  swept.sweep.BeginRemoval(CutAt(NowNs(), NowNs()), false, false);
  CHECK(swept.sweep.Remove({300, 0}, kLong).removed.files == 300);
  CHECK(shelf.Count(0, 2000) == 1000);
}

void ADryRunOnlyCounts() {
  Shelf shelf(300);
  Swept swept(shelf);
  swept.sweep.Scan(true, kLong);
  for (const auto& cuts : {CutAt(NowNs(), NowNs()), CutAt(shelf.Used(5000), NowNs())}) {
    swept.sweep.BeginRemoval(cuts, true, false);
    CHECK(swept.sweep.Remove({100, 0}, kLong).removed.files == 100);
  }
  CHECK(shelf.Count(0, 300) == 300 && swept.sweep.namespaces()[0].amount.files == 300);
}

// Between the walk and the removal of a candidate, at each place where that can happen.
void UsedMeanwhileStays() {
  Shelf shelf(100);
  Swept swept(shelf, {.threads = 1});
  swept.sweep.Scan(true, kLong);
  bool first = true;
  swept.ops->SetHook([&](Call call) {
    if (call != Call::kUnlink || !first) return 0;
    first = false;  // the first removal: all candidates are known
    for (int i = 90; i < 99; ++i) shelf.Use(i);
    return 0;
  });
  swept.sweep.BeginRemoval(CutAt(shelf.Used(5000), shelf.Used(1)), false, false);
  const SweepReport report = swept.sweep.Remove({20, 0}, kLong);
  CHECK(report.removed.files == 20 && report.spared == 9);
  CHECK(shelf.Count(90, 99) == 9 && !shelf.Has(99) && shelf.Count(71, 90) == 0);
}

void RemovalByOthersMeetsTheNeed() {
  for (const bool band : {true, false}) {
    Shelf shelf(100);
    Swept swept(shelf, {.threads = 1});
    swept.sweep.Scan(true, kLong);
    // Another evictor is a moment faster, with 40 files.
    swept.ops->SetHook([&](Call call) {
      for (int i = 60; call == Call::kUnlink && i < 100; ++i) {
        std::filesystem::remove(shelf.dir() / Shelf::Name(i));
      }
      return 0;
    });
    const std::int64_t never = shelf.Used(5000);
    swept.sweep.BeginRemoval(band ? CutAt(never, NowNs()) : CutAt(shelf.Used(39), never), false,
                             false);
    const SweepReport report = swept.sweep.Remove({60, 0}, kLong);
    CHECK(report.finished && report.faults.empty());
    CHECK(shelf.Count(0, 100) == 40 && shelf.Count(0, 40) == 40);
  }
}

void FaultsAreCountedAndTheRestGoes() {
  for (const bool band : {true, false}) {
    Shelf shelf(100);
    Swept swept(shelf, {.threads = 2});
    swept.sweep.Scan(true, kLong);
    std::atomic<int> count = 0;
    swept.ops->SetHook([&](Call call) { return call == Call::kUnlink && ++count <= 5 ? -EIO : 0; });
    const std::int64_t never = shelf.Used(5000);
    swept.sweep.BeginRemoval(band ? CutAt(never, NowNs()) : CutAt(NowNs(), never), false, false);
    Amount need{50, 0};
    SweepReport report = swept.sweep.Remove(need, kLong);
    CHECK(report.faults[EIO] == 5 && report.removed.files == 50);
    CHECK(shelf.Count(0, 100) == 50 && swept.sweep.namespaces()[0].amount.files == 50);
  }
}

void AFolderThatFailsKeepsWhatWasKnown() {
  Shelf shelf(50);
  Swept swept(shelf);
  swept.sweep.Scan(true, kLong);
  swept.ops->SetHook(Fail(Call::kStat, EIO));
  const SweepReport report = swept.sweep.Scan(true, kLong);
  CHECK(report.finished && !report.faults.empty());
  CHECK(swept.sweep.namespaces()[0].amount.files == 50);
}

// A folder's time does not change when its files can be looked at again.
void AFileThatFailsIsCountedOnceItDoesNot() {
  Shelf shelf(20);
  for (const auto& leaf : std::filesystem::directory_iterator(shelf.dir() / (kSpace + "/r0"))) {
    SetTimes(leaf.path(), NowNs(), NowNs() - 60 * kSecond);
  }
  Swept swept(shelf, {.threads = 1});
  int stats = 0;
  swept.ops->SetHook([&](Call call) {
    // The namespace's file, then a folder and its chunk, twenty times.
    return call == Call::kStat && ++stats == 1 + 2 * 7 ? -EIO : 0;
  });
  SweepReport report = swept.sweep.Scan(false, kLong);
  CHECK(report.finished && report.faults[EIO] == 1 && report.files == 19);
  CHECK(swept.sweep.namespaces()[0].amount.files == 19);
  CHECK(swept.sweep.Scan(false, kLong).files == 1);  // no other folder is listed again
  CHECK(swept.sweep.namespaces()[0].amount.files == 20);
}

// It has not been removed by another, so that it does not meet the need.
void AFileThatFailsDoesNotMeetTheNeed() {
  Shelf shelf(20);
  Swept swept(shelf, {.threads = 1});
  swept.sweep.Scan(true, kLong);
  int stats = 0;
  swept.ops->SetHook(
      [&](Call call) { return call == Call::kStat && ++stats == 1 + 2 * 2 ? -EIO : 0; });
  swept.sweep.BeginRemoval(CutAt(NowNs(), NowNs()), false, false);
  SweepReport report = swept.sweep.Remove({5, 0}, kLong);
  CHECK(report.finished && report.faults[EIO] == 1 && report.removed.files == 5);
  CHECK(shelf.Count(0, 20) == 15);
}

// Between the walk, which finds all candidates, and their removal, storage fails.
void ACandidateThatFailsStaysAndAnotherGoes() {
  Shelf shelf(20);
  Swept swept(shelf, {.threads = 1});
  swept.sweep.Scan(true, kLong);
  int stats = 0;
  swept.ops->SetHook(
      [&](Call call) { return call == Call::kStat && ++stats == 1 + 2 * 20 + 1 ? -EIO : 0; });
  swept.sweep.BeginRemoval(CutAt(shelf.Used(5000), NowNs()), false, false);
  SweepReport report = swept.sweep.Remove({5, 0}, kLong);
  CHECK(report.finished && report.faults[EIO] == 1 && report.removed.files == 5);
  CHECK(shelf.Has(19) && shelf.Count(14, 19) == 0 && shelf.Count(0, 14) == 14);
  CHECK(swept.sweep.namespaces()[0].amount.files == 15);
}

void WhatIsNotOursIsNamedAndNeitherCountedNorRemoved() {
  Shelf shelf(10);
  const TempDir& dir = shelf.dir();
  dir.Write(kSpace + "/notes", "x");
  dir.Write(kSpace + "/r0/notes", "x");
  dir.Write(kSpace + "/r0/fff", "x");  // a file where a folder is to be
  dir.Write(kSpace + "/r0/000/notes", "x");
  std::filesystem::create_directory(dir / (kSpace + "/r0/000/0001234567890000-g0.kv"));
  std::filesystem::create_symlink("r0", dir / (kSpace + "/r1"));
  std::filesystem::create_symlink("000", dir / (kSpace + "/r0/ffe"));
  dir.Write("no-namespace-0123456789ab/r0/000/0001234567890001-g0.kv", "x");
  dir.Write("file-0123456789ab", "x");
  Swept swept(shelf);
  swept.sweep.SetNamespaces(
      {kSpace, "no-namespace-0123456789ab", "file-0123456789ab", "gone-0123456789ab"});
  const SweepReport scanned = swept.sweep.Scan(true, kLong);
  CHECK(scanned.finished && scanned.faults.empty());
  CHECK(swept.sweep.namespaces()[0].amount.files == 10);
  CHECK(swept.sweep.namespaces()[1].amount.files == 0);  // nobody knows whose it is
  std::vector<std::string> named = swept.sweep.foreign().examples;
  std::sort(named.begin(), named.end());
  const std::vector<std::string> expected = {
      "file-0123456789ab",      kSpace + "/notes",  kSpace + "/r0/000/0001234567890000-g0.kv",
      kSpace + "/r0/000/notes", kSpace + "/r0/ffe", kSpace + "/r0/fff",
      kSpace + "/r0/notes",     kSpace + "/r1"};
  CHECK(named == expected && swept.sweep.foreign().count == expected.size());
  swept.sweep.BeginRemoval(CutAt(NowNs(), NowNs()), false, false);
  CHECK(swept.sweep.Remove({100, 0}, kLong).removed.files == 10);
  for (const std::string& path : expected) CHECK(dir.Exists(path));
  CHECK(dir.Exists("no-namespace-0123456789ab/r0/000/0001234567890001-g0.kv"));
}

void StopsAtOnce() {
  Shelf shelf(3000);
  for (const bool removal : {false, true}) {
    Swept swept(shelf);
    swept.sweep.Scan(true, kLong);
    Swept slow(shelf, {.files_per_second = 50});
    std::jthread stopper([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      slow.sweep.Stop();
    });
    const auto begin = std::chrono::steady_clock::now();
    if (removal) {
      slow.sweep.BeginRemoval(CutAt(NowNs(), NowNs()), false, false);
      CHECK(!slow.sweep.Remove({3000, 0}, kLong).finished);
    } else {
      CHECK(!slow.sweep.Scan(true, kLong).finished);
    }
    CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(2));
    CHECK(slow.sweep.Scan(true, kLong).files == 0);
  }
  CHECK(shelf.Count(0, 3000) > 2900);
}

void PartsMakeAWhole() {
  Shelf shelf(1000);
  Swept swept(shelf, {.threads = 3, .removals_max = 64});
  int calls = 0;
  while (!swept.sweep.Scan(true, 1e-4).finished) ++calls;
  CHECK(swept.sweep.namespaces()[0].amount.files == 1000);
  swept.sweep.BeginRemoval(CutAt(shelf.Used(699), NowNs()), false, true);
  std::int64_t removed = 0;
  std::size_t names = 0;
  for (bool finished = false; !finished;) {
    const SweepReport report = swept.sweep.Remove({500 - removed, 0}, kLong);
    removed += report.removed.files;
    for (const RemovedNames& each : report.names) names += each.names.size();
    CHECK(report.removed.files <= 64 + 3);  // each thread may be at one
    finished = report.finished;
  }
  CHECK(removed == 500 && names == 500);
  CHECK(shelf.Count(0, 500) == 500 && shelf.Count(500, 1000) == 0);
}

void LittleRoomForCandidatesKeepsTheOldest() {
  Shelf shelf(500);
  Swept swept(shelf, {.band_files = 30});
  swept.sweep.Scan(true, kLong);
  swept.sweep.BeginRemoval(CutAt(shelf.Used(5000), NowNs()), false, false);
  const SweepReport report = swept.sweep.Remove({100, 0}, kLong);
  CHECK(report.finished && report.removed.files == 30);
  CHECK(shelf.Count(0, 470) == 470 && shelf.Count(470, 500) == 0);
}

void FoldersThatCannotHoldACandidateAreNotListed() {
  Shelf shelf(400);
  for (const auto& leaf : std::filesystem::directory_iterator(shelf.dir() / (kSpace + "/r0"))) {
    SetTimes(leaf.path(), NowNs(), NowNs() - 60 * kSecond);
  }
  Swept swept(shelf);
  swept.sweep.Scan(true, kLong);
  swept.sweep.BeginRemoval(CutAt(shelf.Used(397), shelf.Used(397)), false, false);
  const SweepReport report = swept.sweep.Remove({400, 0}, kLong);
  CHECK(report.removed.files == 2 && report.files < 10);
}

}  // namespace
}  // namespace kvshelf::testing

int main() {
  using namespace kvshelf::testing;
  return RunTests({
      {"counts what there is", CountsWhatThereIs},
      {"unchanged folders are not listed", UnchangedFoldersAreNotListed},
      {"removes exactly the need", RemovesExactlyTheNeed},
      {"a dry run only counts", ADryRunOnlyCounts},
      {"used meanwhile stays", UsedMeanwhileStays},
      {"removal by others meets the need", RemovalByOthersMeetsTheNeed},
      {"faults are counted and the rest goes", FaultsAreCountedAndTheRestGoes},
      {"a folder that fails keeps what was known", AFolderThatFailsKeepsWhatWasKnown},
      {"a file that fails is counted once it does not", AFileThatFailsIsCountedOnceItDoesNot},
      {"a file that fails does not meet the need", AFileThatFailsDoesNotMeetTheNeed},
      {"a candidate that fails stays and another goes", ACandidateThatFailsStaysAndAnotherGoes},
      {"what is not ours is named and left alone", WhatIsNotOursIsNamedAndNeitherCountedNorRemoved},
      {"stops at once", StopsAtOnce},
      {"parts make a whole", PartsMakeAWhole},
      {"little room for candidates keeps the oldest", LittleRoomForCandidatesKeepsTheOldest},
      {"folders without candidates are not listed", FoldersThatCannotHoldACandidateAreNotListed},
  });
}
