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

// Blocks `begin` to `end` - 1 of a file of sixteen, in pieces that are not the engine's own.
void CheckPieces(PartsFixture& f, std::uint64_t piece_blocks, std::size_t begin, std::size_t end) {
  constexpr std::size_t kBlocks = 16;
  const std::size_t block_bytes = f.blocks.block_bytes();
  Files files(0, 1);
  files.block_ids.resize(end - begin);
  std::iota(files.block_ids.begin(), files.block_ids.end(), static_cast<int>(begin));
  files.first_blocks = {static_cast<std::int32_t>(begin)};
  files.block_counts = {static_cast<std::int32_t>(end - begin)};
  files.batch.block_ids = files.block_ids;
  std::vector<std::string> wanted;
  for (std::size_t i = 0; i < kBlocks; ++i) wanted.push_back(f.blocks.Block(i));
  f.blocks.Fill(0);
  std::atomic<std::size_t> reads{0};
  f.ops->SetHook([&](Call call) {
    if (call == Call::kRead) ++reads;
    return 0;
  });
  f.engine->SubmitLoad(2, files.batch);
  CHECK(f.All(2, FileStatus::kOk));
  f.ops->SetHook({});
  for (std::size_t i = 0; i < kBlocks; ++i) {
    const bool asked = begin <= i && i < end;
    CHECK(f.blocks.Block(i) == (asked ? wanted[i] : std::string(block_bytes, '\0')));
  }
  // A block is read at a time, and a header with each part, of two blocks.
  const std::size_t first = begin / piece_blocks * piece_blocks;
  const std::size_t last =
      std::min((end + piece_blocks - 1) / piece_blocks * piece_blocks, kBlocks);
  CHECK(reads == (last - first) + (end + 1) / 2 - begin / 2);
  // None of them is left unverified.
  const std::string sound = f.dir.Read(Files::Path(0));
  for (std::size_t i = first; i < last; ++i) {
    std::string bytes = sound;
    bytes[kPageBytes + i * block_bytes + 5] ^= 1;
    f.dir.Write(Files::Path(0), bytes);
    f.reports.clear();
    f.engine->SubmitLoad(3, files.batch);
    CHECK(f.All(3, FileStatus::kCorrupt) && !f.dir.Exists(Files::Path(0)));
  }
  f.dir.Write(Files::Path(0), sound);
}

void EachPieceIsReadOnceWhateverItsSize() {
  for (const std::uint64_t piece_blocks : {1, 2, 3, 5, 8, 16}) {
    for (const bool cuda : {false, true}) {
      for (const auto& [begin, end] : {std::pair(0, 16), {1, 16}, {3, 11}, {6, 7}, {9, 16}}) {
        PartsFixture f;
        f.config.piece_bytes = piece_blocks * f.blocks.block_bytes();
        f.config.write_buffer_bytes = 16 * f.config.piece_bytes;
        Files files(0, 1);
        files.block_ids.resize(16);
        std::iota(files.block_ids.begin(), files.block_ids.end(), 0);
        files.block_counts = {16};
        files.batch.block_ids = files.block_ids;
        f.Open();
        f.engine->SubmitStore(1, files.batch);
        CHECK(f.All(1, FileStatus::kOk));
        f.config.piece_bytes = f.blocks.block_bytes();
        cuda ? f.OpenCuda() : f.Open();
        CheckPieces(f, piece_blocks, static_cast<std::size_t>(begin),
                    static_cast<std::size_t>(end));
      }
    }
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
  const std::shared_ptr<Device> device = MakeCudaDevice(0, "", CopyMethod::kAuto, kPageBytes);
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
      {"each piece is read once, whatever its size", EachPieceIsReadOnceWhateverItsSize},
      {"a file of which one part hangs times out", AFileOfWhichOnePartHangsTimesOut},
      {"a file of which one part fails is not written to afterwards",
       AFileOfWhichOnePartFailsIsNotWrittenToAfterwards},
      {"a single copy that is refused fails its file", ASingleCopyThatIsRefusedFailsItsFile},
      {"a stream that cannot be made leaves nothing", AStreamThatCannotBeMadeLeavesNothing},
  });
}
