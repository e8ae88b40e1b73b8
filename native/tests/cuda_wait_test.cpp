// What a load on a GPU does not wait for once its bytes are read, on the fake driver.
#include "cuda_fixture.h"

namespace kvshelf {
namespace {

using testing::Call;
using testing::CudaFixture;
using testing::Trap;

constexpr int kReadsPerFile = 12;  // EngineFixture's: two parts, each with a header

struct OneThread : CudaFixture {
  std::atomic<int> reads{0};
  OneThread() { config.io_threads = 1; }
};

// The thread that has its last part reads another request's file next, and that hangs.
void ALoadThatIsReadDoesNotWaitForAnotherFile() {
  OneThread f;
  f.Prepare(0, 2);
  f.config.load_stall_seconds = 30;
  f.OpenCuda();
  Trap first, next;
  first.Shut();
  next.Shut();
  f.ops->SetHook([&](Call call) {
    if (call != Call::kRead) return 0;
    const int read = ++f.reads;
    if (read == 1) first.Pass();
    if (read > kReadsPerFile) next.Pass();
    return 0;
  });
  f.Load(1, 0, 1);
  CHECK(first.AwaitCaught(1));
  f.Load(2, 1, 2);
  first.Open();
  CHECK(next.AwaitCaught(1));
  CHECK(f.All(1, FileStatus::kOk));
  next.Open();
  CHECK(f.All(2, FileStatus::kOk));
  CHECK(f.reads == 2 * kReadsPerFile);
}

// Nothing but parts of a load that was given up is left to read, and then a store, which hangs.
void ALoadThatIsReadDoesNotWaitForAStore() {
  OneThread f;
  f.config.piece_bytes = 131072;  // a file is one piece, and so one part
  f.Prepare(0, 6);
  f.OpenCuda();
  Trap first, last, write;
  first.Shut();
  last.Shut();
  write.Shut();
  f.ops->SetHook([&](Call call) {
    if (call == Call::kWrite) f.reads == 0 ? first.Pass() : write.Pass();
    if (call == Call::kRead && ++f.reads == kReadsPerFile - 1) last.Pass();
    return 0;
  });
  f.Store(1, 10, 11);  // keeps the thread while the loads come
  CHECK(first.AwaitCaught(1));
  f.Load(2, 2, 6);  // long: it waits
  f.Load(3, 1, 2);
  first.Open();
  CHECK(last.AwaitCaught(1));
  CHECK(f.All(1, FileStatus::kOk));
  f.engine->Cancel(std::vector<JobId>{2});
  f.Store(4, 11, 12);
  last.Open();
  CHECK(write.AwaitCaught(1));
  CHECK(f.All(2, FileStatus::kCancelled));
  CHECK(f.All(3, FileStatus::kOk));
  write.Open();
  CHECK(f.All(4, FileStatus::kOk));
}

}  // namespace
}  // namespace kvshelf

int main() {
  using namespace kvshelf;
  return testing::RunTests({
      {"a load that is read does not wait for another file",
       ALoadThatIsReadDoesNotWaitForAnotherFile},
      {"a load that is read does not wait for a store", ALoadThatIsReadDoesNotWaitForAStore},
  });
}
