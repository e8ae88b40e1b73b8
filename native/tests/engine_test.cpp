// The engine on storage that works. Storage that does not: engine_fault_test.cpp.
#include <sys/stat.h>

#include <algorithm>

#include "engine_fixture.h"
#include "kvshelf/use_time.h"

namespace kvshelf {
namespace {

using testing::Blocks;
using testing::Call;
using testing::Catch;
using testing::EngineFixture;
using testing::Files;

void StoresAndLoadsInBothModes() {
  for (const bool write_behind : {false, true}) {
    for (const Direct direct : {Direct::kOff, Direct::kAuto}) {
      EngineFixture f;
      f.config.write_behind = write_behind;
      f.config.direct = direct;
      f.Open();
      f.Store(1, 0, 40);
      const Report* released = f.Find(1, Phase::kReleased);
      CHECK(released != nullptr && released->payload_bytes == 40 * f.file_bytes());
      CHECK(f.All(1, FileStatus::kOk));
      const std::string before = f.blocks.All();
      f.blocks.Fill(0);
      f.Load(2, 0, 40);
      CHECK(f.All(2, FileStatus::kOk));
      const Report* loaded = f.Find(2, Phase::kFinished);
      CHECK(loaded != nullptr && loaded->payload_bytes == 40 * f.file_bytes());
      for (std::size_t block = 0; block < 160; ++block) {
        CHECK(f.dir.Read(Files::Path(static_cast<int>(block / 4)))
                  .substr(kPageBytes + (block % 4) * f.blocks.block_bytes(),
                          f.blocks.block_bytes()) == f.blocks.Block(block));
      }
      // Released comes first, each report once.
      CHECK(f.reports.size() == 3 && f.reports[0].phase == Phase::kReleased);
      CHECK(f.dir.CountFiles("ns/tmp") == 0);
      CHECK(f.engine->Close(5));
    }
  }
}

void PackedFilesAreStoredAndLoadedByAllThreads() {
  for (const bool write_behind : {false, true}) {
    EngineFixture f;
    f.config.write_behind = write_behind;
    f.config.compress = true;
    f.config.piece_bytes = 65536;
    f.blocks.FillNumbers(7);
    f.Open();
    f.Store(1, 0, 40);
    CHECK(f.All(1, FileStatus::kOk));
    CHECK(f.Find(1, Phase::kFinished)->payload_bytes == 40 * f.file_bytes());
    const EngineStats stats = f.engine->Stats();
    CHECK(stats.stored_payload_bytes == 40 * f.file_bytes());
    CHECK(stats.stored_file_bytes < stats.stored_payload_bytes * 95 / 100);
    std::vector<std::string> wanted;
    for (std::size_t block = 0; block < 160; ++block) wanted.push_back(f.blocks.Block(block));
    f.blocks.Fill(0);
    f.Load(2, 0, 40);
    CHECK(f.All(2, FileStatus::kOk));
    for (std::size_t block = 0; block < 160; ++block) CHECK(f.blocks.Block(block) == wanted[block]);
    CHECK(f.dir.CountFiles("ns/tmp") == 0 && f.engine->Close(5));
  }
}

void StoringAgainIsOkAndMovesNothing() {
  for (const bool write_behind : {false, true}) {
    EngineFixture f;
    f.config.write_behind = write_behind;
    f.Prepare(0, 10);
    const std::string file = f.dir.Read(Files::Path(3));
    f.blocks.FillRandom(8);
    f.Open();
    f.Store(1, 0, 10);
    CHECK(f.All(1, FileStatus::kOk, Phase::kReleased) && f.All(1, FileStatus::kOk));
    CHECK(f.Find(1, Phase::kFinished)->payload_bytes == 0);
    CHECK(f.dir.Read(Files::Path(3)) == file && f.dir.CountFiles("ns/tmp") == 0);
  }
}

void AFileThatFailsDoesNotHarmTheOthers() {
  EngineFixture f;
  f.Prepare(0, 3);
  f.blocks.Fill(0);
  f.Open();
  f.Load(1, 0, 5);
  using enum FileStatus;
  CHECK(f.Statuses(1) == (std::vector{kOk, kOk, kOk, kNotFound, kNotFound}));
  CHECK(f.blocks.Block(12) == std::string(f.blocks.block_bytes(), '\0'));
}

void LookupsAnswerInOrder() {
  EngineFixture f;
  f.Prepare(0, 5);
  f.dir.Write("ns/short", std::string(8191, 'x'));
  f.Open();
  std::vector<std::string> paths;
  for (int i = 0; i < 1000; ++i) paths.push_back(Files::Path(i));
  paths.insert(paths.end(), {"ns/short", "ns/r0", "ns/short/below", "other/ns"});
  f.engine->SubmitLookup(1, paths);
  const auto statuses = f.Statuses(1);
  CHECK(statuses.size() == paths.size());
  for (std::size_t i = 0; i < statuses.size(); ++i) {
    CHECK(statuses[i] == (i < 5 ? FileStatus::kOk : FileStatus::kNotFound));
  }
}

void TouchRenewsOldUsesOnly() {
  EngineFixture f;
  f.Prepare(0, 2);
  const timespec old[2] = {{1000, 0}, {2000, 0}};
  const std::string path = f.dir / Files::Path(0);
  CHECK(::utimensat(AT_FDCWD, path.c_str(), old, 0) == 0);
  f.Open();
  f.engine->Touch({Files::Path(0), Files::Path(1), Files::Path(2)});
  CHECK(f.engine->Drain(5));
  CHECK(f.engine->Stats().touched == 1);
  struct stat now{};
  CHECK(::stat(path.c_str(), &now) == 0);
  CHECK(now.st_atim.tv_sec > 2000 && now.st_mtim.tv_sec == now.st_atim.tv_sec);
  CHECK(LastUse(now).reused && LastUse(now).ns == Nanoseconds(now.st_mtim));
}

void BadArgumentsAreRefusedBeforeAnythingIsQueued() {
  EngineFixture f;
  f.Open();
  auto refused = [&](auto&& change) {
    Files files(0, 3);
    change(files);
    for (const bool store : {true, false}) {
      bool thrown = false;
      try {
        store ? f.engine->SubmitStore(1, files.batch) : f.engine->SubmitLoad(1, files.batch);
      } catch (const std::invalid_argument&) {
        thrown = true;
      }
      CHECK(thrown);
    }
  };
  for (const char* path :
       {"", "/abs/olute", "ns/../up", "ns//twice", "ns/./dot", "ns/end/", ".."}) {
    refused([&](Files& files) { files.batch.paths[2] = path; });
  }
  refused([](Files& files) { files.batch.paths[0] = std::string("ns/a\0b", 6); });
  refused([](Files& files) { files.batch.paths[0] = "ns/" + std::string(256, 'x'); });
  refused([](Files& files) { files.batch.keys[1] = "too short"; });
  refused([](Files& files) { files.batch.keys[1] = std::string(129, 'k'); });
  refused([](Files& files) { files.batch.keys.pop_back(); });
  refused([](Files& files) { files.groups[1] = 1; });
  refused([](Files& files) { files.groups[1] = -1; });
  refused([](Files& files) { files.first_blocks[1] = -1; });
  refused([](Files& files) { files.block_counts[1] = 0; });
  refused([](Files& files) { files.block_counts[1] = 5; });
  refused([](Files& files) {
    files.block_counts[1] = 13;  // with the next one the sum is right
    files.block_counts[2] = -5;
  });
  refused([](Files& files) { files.block_ids[11] = 256; });
  refused([](Files& files) { files.block_ids[0] = -1; });
  refused([](Files& files) { files.batch.block_ids = files.batch.block_ids.first(11); });
  refused([](Files& files) {
    files.batch = {};  // no rows
  });
  CHECK(f.engine->Drain(0) && f.engine->Poll().empty() && !f.dir.Exists("ns"));

  f.Load(7, 0, 1);
  bool thrown = false;
  CHECK(f.engine->Wait(std::vector<JobId>{7}, Phase::kFinished, 5));
  try {
    f.Load(7, 0, 1);  // finished, but its result was not fetched
  } catch (const std::invalid_argument&) {
    thrown = true;
  }
  CHECK(thrown);
  CHECK(f.engine->Poll().size() == 1);
  f.Load(7, 0, 1);
}

void LoadsGoBeforeStores() {
  EngineFixture f;
  f.config.io_threads = 1;
  f.config.write_behind = false;
  f.Prepare(0, 4);
  f.trap.Shut();
  f.ops->SetHook(Catch(Call::kOpen, f.trap));
  f.Open();
  f.Store(1, 10, 11);  // occupies the only thread
  CHECK(f.trap.AwaitCaught(1));
  f.Store(2, 20, 40);
  f.Load(3, 0, 4);
  CHECK(f.engine->Stats().queued_stores == 20 && f.engine->Stats().queued_loads == 4);
  f.trap.Open();
  CHECK(f.All(2, FileStatus::kOk) && f.All(3, FileStatus::kOk));
  const auto at = [&](JobId id) {
    return std::find_if(f.reports.begin(), f.reports.end(), [&](const Report& report) {
      return report.job_id == id && report.phase == Phase::kFinished;
    });
  };
  CHECK(at(3) < at(2));
}

void LoadOnlyThreadsTakeNoStores() {
  EngineFixture f;
  f.config.write_behind = false;
  f.Prepare(0, 4);
  f.trap.Shut();
  f.ops->SetHook(Catch(Call::kWrite, f.trap));
  f.Open();
  f.Store(1, 10, 20);
  CHECK(f.trap.AwaitCaught(2));  // both threads that may store hang in a write
  f.Load(2, 0, 4);
  CHECK(f.All(2, FileStatus::kOk));
  f.Load(3, 0, 4);  // by a thread that has seen the waiting stores
  CHECK(f.All(3, FileStatus::kOk));
}

void CancelGivesUpWhatNobodyBegan() {
  EngineFixture f;
  f.config.io_threads = 1;
  f.Prepare(0, 4);
  f.trap.Shut();
  f.ops->SetHook(Catch(Call::kRead, f.trap));
  f.Open();
  f.Load(1, 0, 4);
  CHECK(f.trap.AwaitCaught(1));
  f.engine->Cancel(std::vector<JobId>{1, 99});
  CHECK(f.engine->Stats().queued_loads == 0);
  f.trap.Open();
  using enum FileStatus;
  CHECK(f.Statuses(1) == (std::vector{kOk, kCancelled, kCancelled, kCancelled}));
}

void FullQueuesDropStoresAndFailLoads() {
  EngineFixture f;
  f.config.io_threads = 1;
  f.config.write_behind = false;
  f.config.queue_files = 2;
  f.Open();
  f.trap.Shut();
  f.ops->SetHook(Catch(Call::kOpen, f.trap));
  f.Store(1, 0, 1);
  CHECK(f.trap.AwaitCaught(1));
  f.Store(2, 1, 5);
  f.Load(3, 1, 5);
  f.trap.Open();
  using enum FileStatus;
  CHECK(f.Statuses(2) == (std::vector{kOk, kOk, kDropped, kDropped}));
  const auto loads = f.Statuses(3);
  CHECK(std::count(loads.begin(), loads.end(), kIoError) == 2);
}

void FullQueuesOfLookupsAndTouchesAreSaid() {
  EngineFixture f;
  f.Prepare(0, 1);
  f.config.queue_files = 4;
  f.config.touch_queue_files = 2;
  f.Open();
  std::vector<std::string> paths(6, Files::Path(0));
  f.engine->SubmitLookup(1, paths);
  using enum FileStatus;
  CHECK(f.Statuses(1) == (std::vector{kOk, kOk, kOk, kOk, kIoError, kIoError}));
  CHECK(f.Find(1, Phase::kFinished)->errnos == (std::vector<int>{0, 0, 0, 0, EAGAIN, EAGAIN}));
  CHECK(f.engine->Stats().queued_lookups == 0);
  f.engine->Touch(paths);
  CHECK(f.engine->Stats().touches_dropped == 4);
}

void CloseEndsEverything() {
  EngineFixture f;
  f.Open();
  f.Store(1, 0, 30);
  CHECK(f.engine->Close(5) && f.engine->Close(5));
  const Report* report = f.Find(1, Phase::kFinished);
  CHECK(report != nullptr);
  for (std::size_t i = 0; report != nullptr && i < report->statuses.size(); ++i) {
    const bool stored = f.dir.Exists(Files::Path(static_cast<int>(i)));
    CHECK(report->statuses[i] == (stored ? FileStatus::kOk : FileStatus::kCancelled));
  }
  CHECK(f.dir.CountFiles("ns/tmp") == 0);
  for (const bool store : {true, false}) {
    bool thrown = false;
    try {
      store ? f.Store(2, 0, 1) : f.engine->Touch({"ns/x"});
    } catch (const EngineClosed&) {
      thrown = true;
    }
    CHECK(thrown);
  }
}

void ManyJobsFromManyThreads() {
  EngineFixture f;
  f.config.write_buffer_bytes = 2 * f.config.piece_bytes;
  f.Open();
  std::vector<std::thread> threads;
  std::atomic<int> finished{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&f, t] {
      for (int i = 0; i < 30; ++i) {
        const JobId id = 1000 * t + 3 * i;
        f.Store(id, 8 * (i % 4), 8 * (i % 4) + 8);  // the threads store the same chunks
        f.Load(id + 1, 32, 40);
        f.engine->SubmitLookup(id + 2, {Files::Path(i), Files::Path(i + 1)});
        if (i % 7 == 0) f.engine->Release(std::vector<JobId>{id});
        if (i % 5 == 0) f.engine->Cancel(std::vector<JobId>{id + 1});
        f.engine->Touch({Files::Path(i)});
      }
    });
  }
  CHECK(f.Eventually([&] {
    for (const Report& report : f.engine->Poll()) {
      if (report.phase == Phase::kFinished) ++finished;
    }
    return finished == 4 * 30 * 3;
  }));
  for (auto& thread : threads) thread.join();
  CHECK(f.engine->Drain(5));
  const EngineStats stats = f.engine->Stats();
  CHECK(stats.queued_loads == 0 && stats.queued_stores == 0 && stats.queued_lookups == 0);
  CHECK(stats.write_buffer_used_bytes == 0 && stats.hung_threads == 0);
  CHECK(f.engine->Close(5) && f.dir.CountFiles("ns/tmp") == 0);
}

}  // namespace
}  // namespace kvshelf

int main() {
  using namespace kvshelf;
  return testing::RunTests({
      {"stores and loads in both modes", StoresAndLoadsInBothModes},
      {"packed files are stored and loaded by all threads",
       PackedFilesAreStoredAndLoadedByAllThreads},
      {"storing again is OK and moves nothing", StoringAgainIsOkAndMovesNothing},
      {"a file that fails does not harm the others", AFileThatFailsDoesNotHarmTheOthers},
      {"lookups answer in order", LookupsAnswerInOrder},
      {"touch renews old access times only", TouchRenewsOldUsesOnly},
      {"bad arguments are refused before anything is queued",
       BadArgumentsAreRefusedBeforeAnythingIsQueued},
      {"loads go before stores", LoadsGoBeforeStores},
      {"load-only threads take no stores", LoadOnlyThreadsTakeNoStores},
      {"cancel gives up what nobody began", CancelGivesUpWhatNobodyBegan},
      {"full queues drop stores and fail loads", FullQueuesDropStoresAndFailLoads},
      {"full queues of lookups and touches are said", FullQueuesOfLookupsAndTouchesAreSaid},
      {"close ends everything", CloseEndsEverything},
      {"many jobs from many threads", ManyJobsFromManyThreads},
  });
}
