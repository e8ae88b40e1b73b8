// The engine on storage that is slow, stalls or is asked for much at once: who waits, and how long.
#include <algorithm>
#include <cerrno>
#include <random>

#include "engine_fixture.h"
#include "load_queue.h"

namespace kvshelf {
namespace {

using testing::Call;
using testing::Catch;
using testing::EngineFixture;
using testing::Files;
using testing::kBlocksPerFile;
using testing::Trap;

std::shared_ptr<Job> LoadOf(std::size_t files) {
  auto job = std::make_shared<Job>(JobKind::kLoad, 1, files);
  for (std::size_t i = 0; i < files; ++i) job->transfers[i].job = job.get();
  return job;
}

void Enqueue(LoadQueue& queue, const std::shared_ptr<Job>& job) {
  for (std::size_t i = 0; i < job->transfers.size(); ++i) queue.Push({Ref(job, i), 0, 4});
}

// How many parts are taken until the last of `job`.
std::size_t PartsUntilDone(LoadQueue& queue, const std::shared_ptr<Job>& job) {
  std::size_t left = job->transfers.size(), taken = 0;
  while (left > 0) {
    ++taken;
    if (queue.Pop().file->job == job.get()) --left;
  }
  return taken;
}

void AShortLoadDoesNotWaitForALongOne() {
  LoadQueue queue;
  const auto longest = LoadOf(500), shortest = LoadOf(4);
  Enqueue(queue, longest);
  Enqueue(queue, shortest);
  CHECK(PartsUntilDone(queue, shortest) <= 6);
  CHECK(queue.size() >= 498);
}

void ALongLoadEndsHoweverManyShortOnesCome() {
  LoadQueue queue;
  const auto longest = LoadOf(50);
  std::vector<std::shared_ptr<Job>> others;
  Enqueue(queue, longest);
  std::size_t left = 50, taken = 0;
  for (; left > 0 && taken < 1000; ++taken) {
    others.push_back(LoadOf(1));
    Enqueue(queue, others.back());
    if (queue.Pop().file->job == longest.get()) --left;
  }
  CHECK(left == 0 && taken <= 4 * 50);
}

// As many requests of one length at once: the first ones do not wait for the last.
void EqualLoadsEndOneAfterTheOther() {
  LoadQueue queue;
  std::vector<std::shared_ptr<Job>> jobs;
  for (int i = 0; i < 8; ++i) jobs.push_back(LoadOf(16));
  for (const auto& job : jobs) Enqueue(queue, job);
  CHECK(PartsUntilDone(queue, jobs[0]) == 16);
  CHECK(PartsUntilDone(queue, jobs[1]) == 16);
}

void FinishedJobsLeaveTheQueue() {
  LoadQueue queue;
  const auto gone = LoadOf(3), here = LoadOf(2);
  Enqueue(queue, gone);
  Enqueue(queue, here);
  gone->progress.unsettled = 0;
  queue.DropFinished();
  CHECK(queue.size() == 2 && queue.Pop().file->job == here.get());
}

// The time-out is far: what ends these loads is that nothing comes.
void LoadsThatGetNothingAreGivenUpWithAllThatWait() {
  EngineFixture f;
  f.Prepare(0, 12);
  f.config.load_stall_seconds = 0.3;
  f.config.load_timeout_seconds = 60;
  f.config.replacement_threads = 0;  // nobody is left to take what waits
  f.Open();
  f.trap.Shut();
  f.ops->SetHook(Catch(Call::kRead, f.trap));
  f.Load(1, 0, 12);
  const auto start = Clock::now();
  CHECK(f.All(1, FileStatus::kTimedOut));
  CHECK(Clock::now() - start < std::chrono::seconds(10));
  // Nor does a new load wait for its time-out.
  CHECK(f.Eventually([&] { return f.engine->Stats().hung_threads == 3; }));
  f.Load(3, 0, 12);
  CHECK(f.All(3, FileStatus::kTimedOut));
  CHECK(Clock::now() - start < std::chrono::seconds(20));
  f.blocks.Fill(0x33);
  const std::string before = f.blocks.All();
  f.trap.Open();
  CHECK(f.Eventually([&] { return f.engine->Stats().hung_threads == 0; }));
  CHECK(f.blocks.All() == before);
  f.ops->SetHook(nullptr);
  f.Load(2, 0, 12);
  CHECK(f.All(2, FileStatus::kOk));
}

// What came while the last thread hung has nobody to wait for when that is given up.
void ALoadThatComesLateIsGivenUpWithTheLastThread() {
  EngineFixture f;
  f.Prepare(0, 2);
  f.config.io_threads = 1;
  f.config.load_only_threads = 0;
  f.config.load_stall_seconds = 0.6;
  f.config.load_timeout_seconds = 60;
  f.config.replacement_threads = 0;
  f.Open();
  f.trap.Shut();
  f.ops->SetHook(Catch(Call::kRead, f.trap));
  f.Load(1, 0, 1);
  CHECK(f.trap.AwaitCaught(1));
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  f.Load(2, 1, 2);
  CHECK(f.All(1, FileStatus::kTimedOut));
  CHECK(f.All(2, FileStatus::kTimedOut));
  f.trap.Open();
}

void OneFileThatHangsIsGivenUpAlone() {
  EngineFixture f;
  f.Prepare(0, 6);
  f.config.load_stall_seconds = 0.3;
  f.config.load_timeout_seconds = 60;
  f.Open();
  f.trap.Shut();
  std::atomic<int> reads{0};
  f.ops->SetHook([&](Call call) {
    if (call == Call::kRead && ++reads == 2) f.trap.Pass();
    return 0;
  });
  f.Load(1, 0, 6);
  const auto statuses = f.Statuses(1);
  CHECK(std::count(statuses.begin(), statuses.end(), FileStatus::kTimedOut) == 1);
  CHECK(std::count(statuses.begin(), statuses.end(), FileStatus::kOk) == 5);
  f.trap.Open();
}

// Parts of 16,384 bytes: of one file of 60,000, all three threads that load have one.
void AllThreadsReadOneFile() {
  EngineFixture f;
  f.config.piece_bytes = 8192;
  f.Prepare(0, 1);
  f.Open();
  std::vector<std::string> stored;
  for (std::size_t i = 0; i < kBlocksPerFile; ++i) stored.push_back(f.blocks.Block(i));
  f.blocks.Fill(0x33);
  const std::string elsewhere = f.blocks.Block(kBlocksPerFile);
  f.trap.Shut();
  f.ops->SetHook(Catch(Call::kRead, f.trap));
  f.Load(1, 0, 1);
  CHECK(f.trap.AwaitCaught(3));
  f.trap.Open();
  CHECK(f.All(1, FileStatus::kOk));
  CHECK(f.Find(1, Phase::kFinished)->payload_bytes == f.file_bytes());
  for (std::size_t i = 0; i < kBlocksPerFile; ++i) CHECK(f.blocks.Block(i) == stored[i]);
  CHECK(f.blocks.Block(kBlocksPerFile) == elsewhere);
}

// All three threads find that the header is damaged. Nobody hears of it before the file is gone.
void ABadFileIsRemovedBeforeItsLoadEnds() {
  EngineFixture f;
  f.config.piece_bytes = 8192;
  f.Prepare(0, 1);
  std::string data = f.dir.Read(Files::Path(0));
  data[20] = static_cast<char>(data[20] + 1);
  f.dir.Write(Files::Path(0), data);
  f.Open();
  Trap removing;
  removing.Shut();
  f.trap.Shut();
  f.ops->SetHook([&](Call call) {
    if (call == Call::kRead) f.trap.Pass();
    if (call == Call::kUnlink) removing.Pass();
    return 0;
  });
  f.Load(1, 0, 1);
  CHECK(f.trap.AwaitCaught(3));
  f.trap.Open();
  CHECK(removing.AwaitCaught(1));
  CHECK(f.Find(1, Phase::kFinished, 0.3) == nullptr);
  removing.Open();
  CHECK(f.All(1, FileStatus::kCorrupt));
  CHECK(f.engine->Stats().removed_bad == 1 && !f.dir.Exists(Files::Path(0)));
}

// Copies of one file's parts do not wait for each other, and revoking waits for all of them.
void AGateLetsManyInAndIsRevokedWhenAllAreOut() {
  CopyGate gate;
  Trap trap;
  trap.Shut();
  std::atomic<int> inside{0};
  const auto copy = [&] {
    return gate.Run([&] {
      ++inside;
      trap.Pass();
      --inside;
      return true;
    });
  };
  std::thread first([&] { CHECK(copy()); }), second([&] { CHECK(copy()); });
  CHECK(trap.AwaitCaught(2));
  std::thread revoker([&] {
    CHECK(gate.Revoke());
    CHECK(inside == 0);
  });
  while (!gate.revoked()) std::this_thread::yield();
  CHECK(!copy());  // not even while others are in there
  trap.Open();
  first.join();
  second.join();
  revoker.join();
  CHECK(!gate.Revoke() && !gate.ClaimPublication());
}

// Whoever finds work left wakes another: all threads look things up where each takes long.
void SlowLookupsAreSharedByAllThreads() {
  EngineFixture f;
  f.Prepare(0, 1);
  f.config.lookup_threads = 5;
  f.Open();
  f.trap.Shut();
  f.ops->SetHook(Catch(Call::kOpen, f.trap));
  f.engine->SubmitLookup(1, std::vector<std::string>(64, Files::Path(0)));
  CHECK(f.trap.AwaitCaught(5));
  f.trap.Open();
  CHECK(f.All(1, FileStatus::kOk));
  // And they are found again when they have waited.
  for (JobId id = 2; id < 50; ++id) {
    f.engine->SubmitLookup(id, {Files::Path(0)});
    f.engine->Touch({Files::Path(0)});
    CHECK(f.All(id, FileStatus::kOk));
  }
}

// A load of many steps, each of which takes its time, is slow and not stalled.
void SlowIsNotStalled() {
  EngineFixture f;
  f.Prepare(0, 1);
  f.config.load_stall_seconds = 0.4;
  f.Open();
  std::atomic<int> reads{0};
  f.ops->SetHook([&](Call call) {
    if (call == Call::kRead) {
      ++reads;
      std::this_thread::sleep_for(std::chrono::milliseconds(120));
    }
    return 0;
  });
  f.Load(1, 0, 1);
  CHECK(f.All(1, FileStatus::kOk));
  CHECK(reads >= 6);  // longer than the limit in all
}

std::vector<std::string> Keys(int count) {
  std::vector<std::string> keys;
  for (int i = 0; i < count; ++i) {
    std::string key(36, '\0');
    key[0] = static_cast<char>(i >> 8);
    key[1] = static_cast<char>(i);
    keys.push_back(key);
  }
  return keys;
}

// Keys of a prefix: what comes after the first missing one is hardly looked at.
void WhatFollowsAMissingKeyIsNotLookedAt() {
  EngineFixture f;
  const auto keys = Keys(2000);
  for (int i = 0; i < 10; ++i) {
    f.dir.Write(ChunkPath("ns/r0", keys[static_cast<std::size_t>(i)]), std::string(8192, 'x'));
  }
  f.Open();
  std::atomic<int> stats{0};
  f.ops->SetHook([&](Call call) {
    if (call == Call::kStat) {
      ++stats;
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    return 0;
  });
  f.engine->SubmitLookupKeys(1, {"ns/r0"}, keys, {1000});
  const auto statuses = f.Statuses(1);
  using enum FileStatus;
  CHECK(std::all_of(statuses.begin(), statuses.begin() + 10, [](auto s) { return s == kOk; }));
  CHECK(statuses[10] == kNotFound);
  CHECK(std::all_of(statuses.begin() + 11, statuses.begin() + 1000,
                    [](auto s) { return s == kNotFound || s == kCancelled; }));
  CHECK(std::count(statuses.begin() + 11, statuses.begin() + 1000, kCancelled) > 900);
  // Keys outside the run count for themselves.
  CHECK(
      std::all_of(statuses.begin() + 1000, statuses.end(), [](auto s) { return s == kNotFound; }));
  CHECK(stats < 1200);
}

// A chunk that one rank lacks is missing for its run, and ranks of one key are never mixed up.
void RunsCountKeysNotFiles() {
  EngineFixture f;
  const auto keys = Keys(40);
  for (const auto& key : keys) f.dir.Write(ChunkPath("ns/r0", key), std::string(8192, 'x'));
  for (int i = 0; i < 40; ++i) {
    if (i != 20)
      f.dir.Write(ChunkPath("ns/r1", keys[static_cast<std::size_t>(i)]), std::string(8192, 'x'));
  }
  f.config.lookup_threads = 1;
  f.Open();
  f.engine->SubmitLookupKeys(1, {"ns/r0", "ns/r1"}, keys, {40});
  const auto statuses = f.Statuses(1);
  using enum FileStatus;
  CHECK(std::all_of(statuses.begin(), statuses.begin() + 41, [](auto s) { return s == kOk; }));
  CHECK(statuses[41] == kNotFound);
  CHECK(std::all_of(statuses.begin() + 42, statuses.end(), [](auto s) { return s == kCancelled; }));
}

void RunsThatDoNotFitAreRefused() {
  EngineFixture f;
  f.Open();
  for (const std::vector<std::uint32_t>& runs : {std::vector<std::uint32_t>{0}, {41}, {20, 21}}) {
    bool refused = false;
    try {
      f.engine->SubmitLookupKeys(1, {"ns/r0"}, Keys(40), runs);
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    CHECK(refused);
  }
}

void AProbeThatFailsLateSaysWhatItRead() {
  EngineFixture f;
  f.Prepare(0, 1);
  f.Open();
  const auto reads = std::make_shared<std::atomic<int>>(0);
  f.ops->SetHook([=](Call call) { return call == Call::kRead && ++*reads > 1 ? -EIO : 0; });
  f.engine->SubmitProbe(1, {Files::Path(0)}, 1 << 30);
  CHECK(f.All(1, FileStatus::kIoError));
  CHECK(f.Find(1, Phase::kFinished)->payload_bytes > 0);
}

void AProbeReadsWhatThereIs() {
  EngineFixture f;
  f.dir.Write("ns/long", std::string(700'000, 'x'));
  f.dir.Write("ns/short", std::string(1000, 'x'));
  f.Open();
  f.engine->SubmitProbe(1, {"ns/long", "ns/short", "ns/none", "ns"}, 600'000);
  const Report* report = f.Find(1, Phase::kFinished);
  using enum FileStatus;
  CHECK(report != nullptr && report->kind == JobKind::kProbe);
  CHECK(report->statuses == (std::vector{kOk, kOk, kNotFound, kNotFound}));
  CHECK(report->payload_bytes == 601'000);
  f.ops->SetHook([](Call call) { return call == Call::kRead ? -EIO : 0; });
  f.engine->SubmitProbe(2, {"ns/long"}, 1000);
  CHECK(f.All(2, kIoError));
}

}  // namespace
}  // namespace kvshelf

int main() {
  using namespace kvshelf;
  const testing::NamedTest tests[] = {
      {"a short load does not wait for a long one", AShortLoadDoesNotWaitForALongOne},
      {"a long load ends however many short ones come", ALongLoadEndsHoweverManyShortOnesCome},
      {"equal loads end one after the other", EqualLoadsEndOneAfterTheOther},
      {"finished jobs leave the queue", FinishedJobsLeaveTheQueue},
      {"loads that get nothing are given up", LoadsThatGetNothingAreGivenUpWithAllThatWait},
      {"a load that comes late is given up with the last thread",
       ALoadThatComesLateIsGivenUpWithTheLastThread},
      {"one file that hangs is given up alone", OneFileThatHangsIsGivenUpAlone},
      {"all threads read one file", AllThreadsReadOneFile},
      {"a bad file is removed before its load ends", ABadFileIsRemovedBeforeItsLoadEnds},
      {"a gate lets many in", AGateLetsManyInAndIsRevokedWhenAllAreOut},
      {"slow lookups are shared by all threads", SlowLookupsAreSharedByAllThreads},
      {"slow is not stalled", SlowIsNotStalled},
      {"what follows a missing key is not looked at", WhatFollowsAMissingKeyIsNotLookedAt},
      {"runs count keys, not files", RunsCountKeysNotFiles},
      {"runs that do not fit are refused", RunsThatDoNotFitAreRefused},
      {"a probe reads what there is", AProbeReadsWhatThereIs},
      {"a probe that fails late says what it read", AProbeThatFailsLateSaysWhatItRead},
  };
  return testing::RunTests(tests);
}
