// What nobody waits for, and what is not kept: memory that is being made or cannot be had, jobs
// that are done.
#include <malloc.h>

#include <future>
#include <new>

#include "engine_fixture.h"

namespace kvshelf {
namespace {

using testing::Call;
using testing::Catch;
using testing::EngineFixture;
using testing::Files;
using testing::Trap;

// Host memory whose allocations can be made to take long or to fail.
class SlowDevice final : public Device {
 public:
  Trap making;                   // where they wait
  std::atomic<int> failing{-1};  // so many more succeed, then one fails; -1: none

  StagingBuffer AllocateStaging(std::size_t bytes) override {
    making.Pass();
    if (failing >= 0 && failing-- == 0) throw std::bad_alloc();
    return host_->AllocateStaging(bytes);
  }
  std::shared_ptr<CopyStream> NewStream() override { return host_->NewStream(); }
  std::shared_ptr<void> RecordEvent(std::uintptr_t stream) override {
    return host_->RecordEvent(stream);
  }
  bool host_accessible() const override { return true; }

 private:
  std::shared_ptr<Device> host_ = MakeHostDevice();
};

struct SlowFixture : EngineFixture {
  std::shared_ptr<SlowDevice> device = std::make_shared<SlowDevice>();
  ~SlowFixture() { device->making.Open(); }

  void OpenSlow() {
    EngineSetup setup = Setup();
    setup.device = device;
    engine.emplace(std::move(setup));
  }
  // A load hangs in the only thread that may load, and memory for another thread is being made.
  void HangWhileAnotherIsMade() {
    config.io_threads = 1;
    Prepare(0, 1);
    config.load_timeout_seconds = 0.3;
    OpenSlow();
    trap.Shut();
    ops->SetHook(Catch(Call::kRead, trap));
    device->making.Shut();
    Load(1, 0, 1);
    CHECK(trap.AwaitCaught(1));
    CHECK(device->making.AwaitCaught(1));
  }
  // Whether `call` returns, although memory is being made.
  template <typename Call>
  bool Returns(Call&& call) {
    auto called = std::async(std::launch::async, call);
    const bool returned = called.wait_for(std::chrono::seconds(5)) == std::future_status::ready;
    if (!returned) device->making.Open();  // else nobody would come back to the test either
    return returned;
  }
  // Calls that a scheduler makes in its step.
  bool Answers(JobId id) {
    return Returns([this, id] {
      engine->SubmitLookup(id, {Files::Path(0)});
      Fetch();
      engine->Stats();
    });
  }
};

void NobodyWaitsForABufferThatIsMade() {
  SlowFixture f;
  f.OpenSlow();
  f.device->making.Shut();
  f.Store(1, 0, 1);
  CHECK(f.device->making.AwaitCaught(1));
  CHECK(f.Answers(2));
  f.device->making.Open();
  CHECK(f.All(1, FileStatus::kOk));
}

// A store is no longer queued once a copier has it, though it has no buffer yet.
void AStoreWhoseBufferIsMadeIsNotCancelledButGivenUp() {
  SlowFixture f;
  f.config.store_queue_seconds = 0.3;
  f.OpenSlow();
  f.device->making.Shut();
  f.Store(1, 0, 1);
  CHECK(f.device->making.AwaitCaught(1));
  CHECK(f.Returns([&] { f.engine->Cancel(std::vector<JobId>{1}); }));
  CHECK(f.All(1, FileStatus::kDropped));
  f.device->making.Open();
  CHECK(f.Eventually([&] { return f.engine->Stats().write_buffer_used_bytes == 0; }));
  f.Store(2, 0, 1);
  CHECK(f.All(2, FileStatus::kOk));
}

void NobodyWaitsForAThreadThatIsMade() {
  for (const bool closed : {false, true}) {
    SlowFixture f;
    f.HangWhileAnotherIsMade();
    if (closed) {
      CHECK(f.Returns([&] { CHECK(!f.engine->Close(0)); }));
      f.engine.reset();
      f.device->making.Open();
    } else {
      CHECK(f.Answers(2));
      f.device->making.Open();
      CHECK(f.Eventually([&] { return f.engine->Stats().hung_threads == 1; }));
      f.ops->SetHook({});
      f.Load(3, 0, 1);  // by the new thread
      CHECK(f.All(3, FileStatus::kOk));
    }
    f.trap.Open();
    CHECK(!closed || f.Eventually([] { return testing::CountThreads("kvs-") == 0; }));
  }
}

// The thread that hung comes back while another is made in its place: one of them is enough.
void AThreadThatComesBackIsNotReplaced() {
  SlowFixture f;
  f.HangWhileAnotherIsMade();
  CHECK(f.Answers(4));
  f.trap.Open();
  CHECK(f.All(1, FileStatus::kTimedOut));
  f.Load(2, 0, 1);
  CHECK(f.All(2, FileStatus::kOk));
  f.device->making.Open();
  CHECK(f.device->making.AwaitPassed(2));  // the first thread's memory, and the spare one's
  f.Load(3, 0, 1);
  CHECK(f.All(3, FileStatus::kOk));
  CHECK(f.engine->Stats().hung_threads == 0 && testing::CountThreads("kvs-io-") == 1);
}

// Its first buffer or a later one: nobody else has the file any more, so that no time-out has to.
void AStoreWithoutMemoryIsDroppedAtOnce() {
  for (const int failing : {0, 1}) {
    SlowFixture f;
    f.config.store_queue_seconds = 1e8;
    f.OpenSlow();
    f.device->failing = failing;
    f.Store(1, 0, 1);
    CHECK(f.All(1, FileStatus::kDropped, Phase::kReleased));
    CHECK(f.All(1, FileStatus::kDropped));
    f.Store(2, 0, 2);
    CHECK(f.All(2, FileStatus::kOk));
    CHECK(f.Eventually([&] { return f.engine->Stats().write_buffer_used_bytes == 0; }));
    CHECK(f.engine->Close(5) && f.dir.CountFiles("ns/tmp") == 0);
  }
}

// A thread that hangs in a load whose time-out was fetched already: the id is another job's by now.
void AJobWhoseIdWasAHungLoadsIsLeftAlone() {
  EngineFixture f;
  f.config.io_threads = 1;
  f.Prepare(0, 1);
  f.config.load_timeout_seconds = 0.5;
  f.Open();
  f.trap.Shut();
  Trap looking;
  looking.Shut();
  f.ops->SetHook(Catch(Call::kRead, f.trap));
  f.Load(1, 0, 1);
  CHECK(f.trap.AwaitCaught(1));
  CHECK(f.All(1, FileStatus::kTimedOut));
  f.reports.clear();
  f.ops->SetHook(Catch(Call::kStat, looking));
  f.engine->SubmitLookup(1, {Files::Path(0)});
  CHECK(looking.AwaitCaught(1));
  CHECK(f.Eventually([&] { return f.engine->Stats().hung_threads == 1; }));
  CHECK(f.Find(1, Phase::kFinished, 0.3) == nullptr);
  looking.Open();
  CHECK(f.All(1, FileStatus::kOk));
  f.ops->SetHook({});
  f.trap.Open();
}

// What the main thread has allocated; 0 where nobody counts.
std::size_t HeapBytes() {
#if defined(__GLIBC_PREREQ)
#if __GLIBC_PREREQ(2, 33)
  return ::mallinfo2().uordblks;
#endif
#endif
  return 0;
}

void LookupsThatTimedOutAreNotKept() {
  EngineFixture f;
  f.config.lookup_timeout_seconds = 0.05;
  f.config.replacement_threads = 0;
  f.Open();
  f.trap.Shut();
  f.ops->SetHook(Catch(Call::kOpen, f.trap));  // of the folder
  constexpr int kKeys = 4096;
  std::size_t before = 0;
  for (JobId id = 1; id <= 40; ++id) {
    std::vector<std::string> keys;
    for (int i = 0; i < kKeys; ++i) keys.push_back(std::string(32, 'k') + std::to_string(1000 + i));
    f.engine->SubmitLookupKeys(id, {"ns/r0"}, std::move(keys), {kKeys});
    CHECK(f.All(id, FileStatus::kTimedOut));
    f.reports.clear();
    if (id == 4) before = HeapBytes();
  }
  CHECK(f.trap.AwaitCaught(2));
  CHECK(HeapBytes() < before + (2u << 20));
  f.trap.Open();
  f.ops->SetHook({});
  CHECK(f.Eventually([&] { return f.engine->Stats().hung_threads == 0; }));
  f.engine->SubmitLookup(100, {Files::Path(0)});
  CHECK(f.All(100, FileStatus::kNotFound));
}

}  // namespace
}  // namespace kvshelf

int main() {
  using namespace kvshelf;
  return testing::RunTests({
      {"nobody waits for a buffer that is made", NobodyWaitsForABufferThatIsMade},
      {"a store whose buffer is made is not cancelled but given up",
       AStoreWhoseBufferIsMadeIsNotCancelledButGivenUp},
      {"nobody waits for a thread that is made", NobodyWaitsForAThreadThatIsMade},
      {"a thread that comes back is not replaced", AThreadThatComesBackIsNotReplaced},
      {"a store without memory is dropped at once", AStoreWithoutMemoryIsDroppedAtOnce},
      {"a job whose id was a hung load's is left alone", AJobWhoseIdWasAHungLoadsIsLeftAlone},
      {"lookups that timed out are not kept", LookupsThatTimedOutAreNotKept},
  });
}
