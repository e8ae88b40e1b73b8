// The engine on storage that hangs, fails and comes back late: nothing blocks the caller, and
// nothing is written or published after its status was reported.
#include <algorithm>
#include <cerrno>
#include <memory>

#include "engine_fixture.h"

namespace kvshelf {
namespace {

using testing::Blocks;
using testing::Call;
using testing::Catch;
using testing::EngineFixture;
using testing::Fail;
using testing::Files;
using testing::Trap;

// The last thread hangs in a store: a load that waits for it has nobody to wait for.
void ALoadBehindAHungStoreIsGivenUpWithItsThread() {
  EngineFixture f;
  f.Prepare(0, 1);
  f.config.io_threads = 1;
  f.config.load_only_threads = 0;
  f.config.store_timeout_seconds = 0.3;
  f.config.load_timeout_seconds = 60;
  f.config.replacement_threads = 0;
  f.Open();
  f.trap.Shut();
  f.ops->SetHook(Catch(Call::kWrite, f.trap));
  f.Store(1, 1, 2);
  CHECK(f.trap.AwaitCaught(1));
  f.Load(2, 0, 1);
  CHECK(f.All(2, FileStatus::kTimedOut));
  f.trap.Open();
}

void AHungLoadTimesOutAndWritesNothingLater() {
  EngineFixture f;
  f.Prepare(0, 2);
  f.config.load_timeout_seconds = 0.5;
  f.Open();
  f.trap.Shut();
  // A read returns good data after the time-out: the hook runs after the call.
  f.ops->SetHook(Catch(Call::kRead, f.trap));
  f.Load(1, 0, 2);
  CHECK(f.trap.AwaitCaught(2));
  CHECK(f.All(1, FileStatus::kTimedOut));
  f.blocks.Fill(0x33);  // the memory is somebody else's now
  const std::string before = f.blocks.All();
  f.trap.Open();
  CHECK(f.trap.AwaitPassed(2));
  CHECK(f.Eventually([&] { return f.engine->Stats().hung_threads == 0; }));
  CHECK(f.engine->Close(5));
  CHECK(f.blocks.All() == before);
}

void ALoadHungInItsPayloadWritesNothingLater() {
  EngineFixture f;
  f.Prepare(0, 1);
  f.config.load_timeout_seconds = 0.5;
  f.Open();
  std::atomic<int> reads{0};
  f.trap.Shut();
  f.ops->SetHook([&](Call call) {
    if (call == Call::kRead && ++reads == 3) f.trap.Pass();  // header, one step, then it hangs
    return 0;
  });
  f.Load(1, 0, 1);
  CHECK(f.All(1, FileStatus::kTimedOut));
  f.blocks.Fill(0x33);
  const std::string before = f.blocks.All();
  f.trap.Open();
  CHECK(f.trap.AwaitPassed(1));
  CHECK(f.engine->Close(5));
  CHECK(f.blocks.All() == before && f.dir.Exists(Files::Path(0)));
}

void HungThreadsAreReplacedAndComeBack() {
  EngineFixture f;
  f.config.io_threads = 1;
  f.Prepare(0, 4);
  f.config.load_timeout_seconds = 1.0;
  f.config.replacement_threads = 2;
  f.Open();
  for (int hung = 1; hung <= 2; ++hung) {
    f.trap.Shut();
    std::atomic<bool> caught{false};
    f.ops->SetHook([&](Call call) {
      if (call == Call::kRead && !caught.exchange(true)) f.trap.Pass();
      return 0;
    });
    f.Load(hung, 0, 1);
    CHECK(f.All(hung, FileStatus::kTimedOut));
    CHECK(f.Eventually(
        [&] { return f.engine->Stats().hung_threads == static_cast<std::uint64_t>(hung); }));
    f.ops->SetHook({});
    f.Load(10 + hung, 0, 4);  // the replacement works
    CHECK(f.All(10 + hung, FileStatus::kOk));
  }
  // No replacement is left for a third, so nothing is served until one comes back.
  std::atomic<bool> caught{false};
  Trap third;
  third.Shut();
  f.ops->SetHook([&](Call call) {
    if (call == Call::kRead && !caught.exchange(true)) third.Pass();
    return 0;
  });
  f.Load(3, 0, 1);
  CHECK(f.All(3, FileStatus::kTimedOut));
  CHECK(f.Eventually([&] { return f.engine->Stats().hung_threads == 3; }));
  f.Load(4, 0, 1);
  CHECK(f.All(4, FileStatus::kTimedOut));
  f.trap.Open();
  CHECK(f.Eventually([&] { return f.engine->Stats().hung_threads == 1; }));
  f.Load(5, 0, 4);
  CHECK(f.All(5, FileStatus::kOk));
  third.Open();
  CHECK(f.Eventually([&] { return f.engine->Stats().hung_threads == 0; }));
  f.Load(6, 0, 4);
  CHECK(f.All(6, FileStatus::kOk));
  // Those that came back too many have left.
  CHECK(f.Eventually([] { return testing::CountThreads("kvs-io-") == 1; }));
  CHECK(f.engine->Close(5));
}

void AHungCloseReturnsFalseAndLeavesMemoryAlone() {
  auto f = std::make_unique<EngineFixture>();
  f->Prepare(0, 1);
  f->Open();
  auto trap = std::make_shared<Trap>();
  trap->Shut();
  f->ops->SetHook([trap](Call call) {
    if (call == Call::kRead) trap->Pass();
    return 0;
  });
  f->Load(1, 0, 1);
  CHECK(trap->AwaitCaught(1));
  const auto start = Clock::now();
  CHECK(!f->engine->Close(0.1));
  CHECK(Clock::now() - start < std::chrono::seconds(2));
  CHECK(f->All(1, FileStatus::kCancelled));
  f.reset();  // the memory and the engine are gone; AddressSanitizer watches what follows
  trap->Open();
  CHECK(trap->AwaitPassed(1));
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
}

void CloseSucceedsOnceAHungThreadIsBack() {
  EngineFixture f;
  f.Prepare(0, 1);
  f.Open();
  f.trap.Shut();
  f.ops->SetHook(Catch(Call::kRead, f.trap));
  f.Load(1, 0, 1);
  CHECK(f.trap.AwaitCaught(1));
  CHECK(!f.engine->Close(0));
  f.trap.Open();
  CHECK(f.engine->Close(5));
}

void HungLookupsTimeOut() {
  EngineFixture f;
  f.config.lookup_timeout_seconds = 0.1;
  f.Prepare(0, 1);
  f.Open();
  f.trap.Shut();
  f.ops->SetHook(Catch(Call::kStat, f.trap));
  f.engine->SubmitLookup(1, {Files::Path(0), Files::Path(1), Files::Path(2)});
  CHECK(f.All(1, FileStatus::kTimedOut));
  CHECK(f.Eventually([&] { return f.engine->Stats().hung_threads == 2; }));
  f.ops->SetHook({});
  f.engine->SubmitLookup(2, {Files::Path(0)});
  CHECK(f.All(2, FileStatus::kOk));
}

void HungTouchesDoNotStopLookupsOrDrain() {
  EngineFixture f;
  f.Prepare(0, 1);
  f.config.lookup_timeout_seconds = 0.1;
  f.config.touch_interval_seconds = 0;
  f.Open();
  f.trap.Shut();
  f.ops->SetHook(Catch(Call::kTouch, f.trap));
  f.engine->Touch({Files::Path(0)});
  CHECK(f.trap.AwaitCaught(1));
  f.engine->SubmitLookup(1, {Files::Path(0)});
  CHECK(f.All(1, FileStatus::kOk));
  CHECK(!f.engine->Drain(0));
  CHECK(f.engine->Drain(5));  // once the thread is known to hang
}

void ReleaseReturnsWhileStorageHangs() {
  for (const bool write_behind : {false, true}) {
    for (const Call call : {Call::kStat, Call::kOpen, Call::kWrite}) {
      EngineFixture f;
      f.config.write_behind = write_behind;
      f.config.write_buffer_bytes = 4 * f.config.piece_bytes;
      f.Open();
      f.trap.Shut();
      f.ops->SetHook(Catch(call, f.trap));
      f.Store(1, 0, 40);
      CHECK(f.trap.AwaitCaught(1));
      const std::vector<JobId> ids = {1};
      const auto start = Clock::now();
      f.engine->Release(ids);
      CHECK(Clock::now() - start < std::chrono::seconds(1));
      CHECK(f.engine->Wait(ids, Phase::kReleased, 0));
      const auto released = f.Statuses(1, Phase::kReleased);
      CHECK(std::count(released.begin(), released.end(), FileStatus::kDropped) >= 36);
      f.blocks.Fill(0x44);  // what was dropped may not be published with these bytes
      f.trap.Open();
      f.ops->SetHook({});
      const auto finished = f.Statuses(1);
      for (int i = 0; i < 40 && finished.size() == 40; ++i) {
        const bool ok = finished[static_cast<std::size_t>(i)] == FileStatus::kOk;
        CHECK(f.dir.Exists(Files::Path(i)) == ok);
        CHECK(ok || released[static_cast<std::size_t>(i)] == FileStatus::kDropped);
        if (ok) CHECK(f.dir.Read(Files::Path(i)).find("DDDDDDDD") == std::string::npos);
      }
      CHECK(f.engine->Close(5) && f.dir.CountFiles("ns/tmp") == 0);
      CHECK(f.engine->Stats().write_buffer_used_bytes == 0);
    }
  }
}

void AFullBufferQueuesStoresAndThenDropsThem() {
  EngineFixture f;
  f.config.write_buffer_bytes = 4 * f.config.piece_bytes;  // a file has three pieces
  f.config.store_queue_seconds = 0.2;
  f.Open();
  f.trap.Shut();
  f.ops->SetHook(Catch(Call::kOpen, f.trap));
  f.Store(1, 0, 10);
  const auto released = f.Statuses(1, Phase::kReleased);
  CHECK(std::count(released.begin(), released.end(), FileStatus::kOk) == 1);
  CHECK(std::count(released.begin(), released.end(), FileStatus::kDropped) == 9);
  CHECK(f.engine->Stats().queued_stores == 0);
  f.trap.Open();
  CHECK(f.Statuses(1) == released);
  CHECK(f.Eventually([&] { return f.engine->Stats().write_buffer_used_bytes == 0; }));
  CHECK(f.engine->Close(5) && f.dir.CountFiles("ns/tmp") == 0);
}

void HalfTakenStoresThatAreReleasedLeaveNoTempFile() {
  EngineFixture f;
  f.config.io_threads = 8;  // so that two copiers compete for two buffers
  f.config.write_buffer_bytes = 2 * f.config.piece_bytes;
  f.Open();
  for (JobId id = 1; id <= 300; ++id) {
    f.Store(id, 0, 8);
    std::this_thread::sleep_for(std::chrono::microseconds(3 * id));
    f.engine->Release(std::vector<JobId>{id});
    CHECK(f.engine->Wait(std::vector<JobId>{id}, Phase::kFinished, 10));
    f.engine->Poll();
    std::filesystem::remove_all(f.dir / "ns/r0");
  }
  CHECK(f.Eventually([&] { return f.dir.CountFiles("ns/tmp") == 0; }));
  CHECK(f.engine->Close(5) && f.engine->Stats().write_buffer_used_bytes == 0);
}

void AHungStoreTimesOutAndIsNotPublishedLater() {
  for (const bool write_behind : {false, true}) {
    EngineFixture f;
    f.config.write_behind = write_behind;
    f.config.store_timeout_seconds = 0.1;
    f.Open();
    f.trap.Shut();
    f.ops->SetHook(Catch(Call::kWrite, f.trap));
    f.Store(1, 0, 1);
    CHECK(f.All(1, FileStatus::kTimedOut));
    CHECK(f.All(1, write_behind ? FileStatus::kOk : FileStatus::kTimedOut, Phase::kReleased));
    CHECK(f.Eventually([&] { return f.engine->Stats().hung_threads == 1; }));
    f.blocks.Fill(0x44);
    f.trap.Open();
    CHECK(f.Eventually([&] { return f.engine->Stats().hung_threads == 0; }));
    CHECK(!f.dir.Exists(Files::Path(0)) && f.dir.CountFiles("ns/tmp") == 0);
    f.ops->SetHook({});
    f.Store(2, 0, 1);
    CHECK(f.All(2, FileStatus::kOk));
    CHECK(f.engine->Close(5) && f.engine->Stats().write_buffer_used_bytes == 0);
  }
}

// Its only thread hangs: the temp file of a store that it has begun is left, because removing it
// may hang as well.
void ACloseThatHangsLeavesATempFile() {
  Trap writing;
  EngineFixture f;
  f.Prepare(1, 2);
  f.config.io_threads = 1;
  f.config.write_buffer_bytes = f.config.piece_bytes;  // the next piece waits for this one's buffer
  f.Open();
  writing.Shut();
  f.trap.Shut();
  f.ops->SetHook([&](Call call) {
    if (call == Call::kWrite) writing.Pass();
    if (call == Call::kRead) f.trap.Pass();
    return 0;
  });
  f.Store(1, 0, 1);
  CHECK(writing.AwaitCaught(1));
  f.Load(2, 1, 2);  // goes before the rest of the store
  writing.Open();
  CHECK(f.trap.AwaitCaught(1));
  CHECK(!f.engine->Close(0));
  CHECK(f.All(1, FileStatus::kCancelled) && f.All(2, FileStatus::kCancelled));
  f.trap.Open();
  CHECK(f.engine->Close(5));
  CHECK(!f.dir.Exists(Files::Path(0)) && f.dir.CountFiles("ns/tmp") == 1);
}

void FailuresAreDataNotExceptions() {
  for (const bool write_behind : {false, true}) {
    for (const auto& [call, error] : {std::pair{Call::kWrite, ENOSPC},
                                      {Call::kOpen, EROFS},
                                      {Call::kRename, EIO},
                                      {Call::kSync, EIO}}) {
      EngineFixture f;
      f.config.write_behind = write_behind;
      f.config.durability = Durability::kData;
      f.Open();
      f.ops->SetHook(Fail(call, error));
      f.Store(1, 0, 6);
      CHECK(f.All(1, FileStatus::kIoError));
      for (const int each : f.Find(1, Phase::kFinished)->errnos) CHECK(each == error);
      CHECK(f.Find(1, Phase::kReleased) != nullptr);
      f.ops->SetHook({});
      CHECK(f.dir.CountFiles("ns/tmp") == 0 && !f.dir.Exists(Files::Path(0)));
      CHECK(f.engine->Close(5) && f.engine->Stats().write_buffer_used_bytes == 0);
    }
  }
}

void DamageIsCountedAndRemoved() {
  EngineFixture f;
  f.Prepare(0, 3);
  std::string bad = f.dir.Read(Files::Path(1));
  bad[9000] ^= 1;
  f.dir.Write(Files::Path(1), bad);
  f.Open();
  f.Load(1, 0, 3);
  using enum FileStatus;
  CHECK(f.Statuses(1) == (std::vector{kOk, kCorrupt, kOk}));
  CHECK(f.engine->Stats().removed_bad == 1 && !f.dir.Exists(Files::Path(1)));
}

void ShortTransfersAreContinued() {
  EngineFixture f;
  f.ops->SetTransferMax(1000);
  f.Prepare(0, 3);
  f.Open();
  f.Load(1, 0, 3);
  CHECK(f.All(1, FileStatus::kOk));
}

}  // namespace
}  // namespace kvshelf

int main() {
  using namespace kvshelf;
  return testing::RunTests({
      {"a load behind a hung store is given up with its thread",
       ALoadBehindAHungStoreIsGivenUpWithItsThread},
      {"a hung load times out and writes nothing later", AHungLoadTimesOutAndWritesNothingLater},
      {"a load hung in its payload writes nothing later", ALoadHungInItsPayloadWritesNothingLater},
      {"hung threads are replaced and come back", HungThreadsAreReplacedAndComeBack},
      {"a hung close returns false and leaves memory alone",
       AHungCloseReturnsFalseAndLeavesMemoryAlone},
      {"close succeeds once a hung thread is back", CloseSucceedsOnceAHungThreadIsBack},
      {"hung lookups time out", HungLookupsTimeOut},
      {"hung touches do not stop lookups or drain", HungTouchesDoNotStopLookupsOrDrain},
      {"release returns while storage hangs", ReleaseReturnsWhileStorageHangs},
      {"a full buffer queues stores and then drops them", AFullBufferQueuesStoresAndThenDropsThem},
      {"half-taken stores that are released leave no temp file",
       HalfTakenStoresThatAreReleasedLeaveNoTempFile},
      {"a hung store times out and is not published later",
       AHungStoreTimesOutAndIsNotPublishedLater},
      {"a close that hangs leaves a temp file", ACloseThatHangsLeavesATempFile},
      {"failures are data, not exceptions", FailuresAreDataNotExceptions},
      {"damage is counted and removed", DamageIsCountedAndRemoved},
      {"short transfers are continued", ShortTransfersAreContinued},
  });
}
