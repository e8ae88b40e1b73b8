// Files that several threads load from at once, on the fake driver; and a driver that refuses.
#include <cerrno>
#include <cstdlib>
#include <numeric>

#include "cuda_fixture.h"

namespace kvshelf {
namespace {

using testing::Call;
using testing::Catch;
using testing::CudaFixture;
using testing::Files;

// Each block is a piece, so that several threads load a file at once.
struct PartsFixture : CudaFixture {
  PartsFixture() {
    config.piece_bytes = 8192;
    blocks = testing::Blocks(1, 4096, 256);
    blocks.FillRandom(11);
  }
};

void AFileIsLoadedInPartsByAllThreads() {
  for (const std::uint32_t first : {0, 1, 3}) {  // of the file that is asked for
    PartsFixture f;
    fake_cuda_set_delay_us(200);
    f.OpenCuda();
    std::vector<std::int32_t> ids(16);
    std::iota(ids.begin(), ids.end(), 0);
    Files files(0, 1);
    const auto submit = [&](JobId id, std::uint32_t begin, bool store) {
      files.block_ids.assign(ids.begin() + begin, ids.end());
      files.first_blocks = {static_cast<std::int32_t>(begin)};
      files.block_counts = {static_cast<std::int32_t>(16 - begin)};
      files.batch.block_ids = files.block_ids;
      files.batch.first_blocks = files.first_blocks;
      files.batch.block_counts = files.block_counts;
      store ? f.engine->SubmitStore(id, files.batch) : f.engine->SubmitLoad(id, files.batch);
    };
    submit(1, 0, true);
    CHECK(f.All(1, FileStatus::kOk));
    std::vector<std::string> wanted;
    for (std::size_t i = 0; i < 16; ++i) wanted.push_back(f.blocks.Block(i));
    f.blocks.Fill(0);
    f.trap.Shut();
    f.ops->SetHook(Catch(Call::kRead, f.trap));
    submit(2, first, false);
    CHECK(f.trap.AwaitCaught(3));
    f.trap.Open();
    CHECK(f.All(2, FileStatus::kOk));
    for (std::size_t i = 0; i < 16; ++i) {
      const bool asked = i >= first;
      CHECK(f.blocks.Block(i) == (asked ? wanted[i] : std::string(f.blocks.block_bytes(), '\0')));
    }
    f.ops->SetHook({});
    std::string bytes = f.dir.Read(Files::Path(0));
    bytes[kPageBytes + 12 * 4096 + 5] ^= 1;  // in a later part
    f.dir.Write(Files::Path(0), bytes);
    submit(3, first, false);
    CHECK(f.All(3, FileStatus::kCorrupt));
    CHECK(f.Eventually([&] { return !f.dir.Exists(Files::Path(0)); }));
  }
}

// One part hangs, the others are done: the file is late as a whole, and nothing comes afterwards.
void AFileOfWhichOnePartHangsTimesOut() {
  PartsFixture f;
  f.Prepare(0, 1);
  f.config.load_timeout_seconds = 0.5;
  f.config.load_stall_seconds = 0;
  f.OpenCuda();
  f.trap.Shut();
  std::atomic<bool> caught{false};
  f.ops->SetHook([&](Call call) {
    if (call == Call::kRead && !caught.exchange(true)) f.trap.Pass();
    return 0;
  });
  f.Load(1, 0, 1);
  CHECK(f.trap.AwaitCaught(1));
  CHECK(f.All(1, FileStatus::kTimedOut));
  f.blocks.Fill(0x33);
  const std::string before = f.blocks.All();
  f.trap.Open();
  CHECK(f.trap.AwaitPassed(1));
  CHECK(f.engine->Close(5) && f.blocks.All() == before);
}

// The copies of the other parts are late: nobody hears of the failure before they have ended.
void AFileOfWhichOnePartFailsIsNotWrittenToAfterwards() {
  PartsFixture f;
  f.Prepare(0, 1);
  fake_cuda_set_delay_us(100'000);
  f.OpenCuda();
  std::atomic<int> reads{0};  // two parts, each a header and two pieces
  f.ops->SetHook([&](Call call) { return call == Call::kRead && ++reads == 6 ? -EIO : 0; });
  f.Load(1, 0, 1);
  CHECK(f.All(1, FileStatus::kIoError));
  f.blocks.Fill(0x33);
  const std::string before = f.blocks.All();
  CHECK(f.engine->Close(5));
  std::this_thread::sleep_for(std::chrono::milliseconds(1000));  // a stray copy would land now
  CHECK(f.blocks.All() == before);
}

void ASingleCopyThatIsRefusedFailsItsFile() {
  CudaFixture f;
  f.method = CopyMethod::kSingle;
  f.OpenCuda();
  f.Store(1, 0, 1);
  CHECK(f.All(1, FileStatus::kOk));
  fake_cuda_fail("cuMemcpyAsync", 1, 700);
  f.Load(2, 0, 1);
  CHECK(f.All(2, FileStatus::kIoError) && f.dir.Exists(Files::Path(0)));
  f.Load(3, 0, 1);
  CHECK(f.All(3, FileStatus::kOk));
}

// With the driver that the environment names; a code that it does not know is told as a number.
void AStreamThatCannotBeMadeLeavesNothing() {
  CudaFixture f;
  ::setenv("KVSHELF_LIBCUDA", KVSHELF_FAKE_CUDA, 1);
  const std::shared_ptr<Device> device = MakeCudaDevice(0, "", CopyMethod::kAuto);
  ::unsetenv("KVSHELF_LIBCUDA");
  fake_cuda_fail("cuEventCreate", 2, 12345);
  std::string message;
  try {
    device->NewStream();
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  CHECK(message == "cuEventCreate failed: error 12345");
  CHECK(fake_cuda_calls("cuEventDestroy") == 2 && fake_cuda_calls("cuStreamDestroy") == 1);
}

}  // namespace
}  // namespace kvshelf

int main() {
  using namespace kvshelf;
  return testing::RunTests({
      {"a file is loaded in parts by all threads", AFileIsLoadedInPartsByAllThreads},
      {"a file of which one part hangs times out", AFileOfWhichOnePartHangsTimesOut},
      {"a file of which one part fails is not written to afterwards",
       AFileOfWhichOnePartFailsIsNotWrittenToAfterwards},
      {"a single copy that is refused fails its file", ASingleCopyThatIsRefusedFailsItsFile},
      {"a stream that cannot be made leaves nothing", AStreamThatCannotBeMadeLeavesNothing},
  });
}
