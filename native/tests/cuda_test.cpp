// The GPU path on a fake driver: copies that are late, refused or failing, and the order between
// the caller's stream and ours. Block memory is ordinary memory here; only the fake copies it.
#include <cerrno>

#include "cuda_fixture.h"

// The fake's own driver calls, to play the model's part.
extern "C" int cuStreamCreate(StreamHandle** stream, unsigned flags);
extern "C" int cuStreamDestroy_v2(StreamHandle* stream);
extern "C" int cuStreamSynchronize(StreamHandle* stream);

namespace kvshelf {
namespace {

using testing::Call;
using testing::Catch;
using testing::CudaFixture;
using testing::Files;

// This file is built twice: with pages that are copied by DMA, and with pages for the kernel.
constexpr bool kByKernel = testing::kTestPageBytes % 16 == 0;
constexpr const char* kCopyCall = kByKernel ? "cuLaunchKernel" : "cuMemcpyBatchAsync";

struct ModelStream {
  StreamHandle* handle = nullptr;
  ModelStream() { cuStreamCreate(&handle, 0); }
  ~ModelStream() { cuStreamDestroy_v2(handle); }
};

void EveryDriverVersionMovesTheSameBytes() {
  for (const int version : {12000, 12080, 13000}) {
    for (const int delay_us : {0, 200}) {
      CudaFixture f;
      fake_cuda_set_version(version);
      fake_cuda_set_delay_us(delay_us);
      f.OpenCuda();
      CHECK(f.RoundTrip(8));
      if (kByKernel) {
        CHECK(fake_cuda_calls("cuLaunchKernel") > 0);
      } else {
        CHECK((fake_cuda_calls("cuMemcpyBatchAsync") > 0) == (version >= 12080));
      }
    }
  }
}

// Whatever of the kernel is not to be had, pages are copied by DMA.
void WithoutTheKernelPagesAreCopiedByDma() {
  for (const char* function : {"cuModuleLoadData", "cuModuleGetFunction", "cuMemAlloc"}) {
    for (int calls = 0; calls < 2; ++calls) {
      CudaFixture f;
      fake_cuda_fail(function, calls, 2);
      f.OpenCuda();
      CHECK(f.RoundTrip(8));
      const bool failed = calls == 0 || std::string(function) == "cuMemAlloc";
      CHECK((fake_cuda_calls("cuLaunchKernel") > 0) == (kByKernel && !failed));
    }
  }
}

// The last piece of a file has too few pages for the kernel: both ways are used in turn.
void BothWaysKeepTheOrderOfCopies() {
  CudaFixture f;
  f.config.io_threads = 1;
  f.config.piece_bytes = 24'576;
  f.config.write_buffer_bytes = 8 * 24'576;
  fake_cuda_set_delay_us(300);
  f.OpenCuda();
  CHECK(f.RoundTrip(6));
  CHECK(fake_cuda_calls("cuMemcpyBatchAsync") > 0);
  CHECK((fake_cuda_calls("cuLaunchKernel") > 0) == kByKernel);
}

void SingleCopiesAreUsedWhenAsked() {
  CudaFixture f;
  f.method = CopyMethod::kSingle;
  f.OpenCuda();
  CHECK(f.RoundTrip(4));
  CHECK(fake_cuda_calls("cuMemcpyBatchAsync") == 0);
  CHECK(fake_cuda_calls("cuMemcpyAsync") > 0);
}

// Pieces of 4 KiB: each buffer is used many times a file, while its last copy is still late.
void ABufferIsNotReusedBeforeItsCopyIsDone() {
  CudaFixture f;
  f.config.piece_bytes = 4096;
  f.config.step_bytes = 4096;
  f.config.write_buffer_bytes = 4 * 4096;
  f.config.io_threads = 2;
  fake_cuda_set_delay_us(300);
  f.OpenCuda();
  CHECK(f.RoundTrip(3));
}

// Pieces of 16 KiB through buffers of 4: what is copied before its piece is known to be right.
void APieceLargerThanItsBuffersGoesInParts() {
  for (const bool damaged : {false, true}) {
    CudaFixture f;
    f.config.piece_bytes = 16384;
    f.config.ring_bytes = 4096;
    f.config.io_threads = 2;
    fake_cuda_set_delay_us(200);
    f.OpenCuda();
    if (!damaged) {
      CHECK(f.RoundTrip(3));
      continue;
    }
    f.Store(1, 0, 2);
    CHECK(f.All(1, FileStatus::kOk));
    std::string bytes = f.dir.Read(Files::Path(0));
    bytes[2 * kPageBytes + 100] ^= 1;  // in the second part of the first piece
    f.dir.Write(Files::Path(0), bytes);
    f.Load(2, 0, 2);
    const std::vector<FileStatus> statuses = f.Statuses(2);
    CHECK(statuses[0] == FileStatus::kCorrupt);
    CHECK(statuses[1] == FileStatus::kOk);
  }
}

void StagingThatCannotBePinnedIsSaidAtTheStart() {
  CudaFixture f;
  fake_cuda_fail("cuMemHostRegister", 2, 2);
  bool refused = false;
  try {
    f.OpenCuda();
  } catch (const std::bad_alloc&) {
    refused = true;
  }
  CHECK(refused);
}

void UnverifiedAndThroughStoresWorkToo() {
  CudaFixture f;
  f.config.verify = false;
  f.config.write_behind = false;
  fake_cuda_set_delay_us(100);
  f.OpenCuda();
  CHECK(f.RoundTrip(4));
}

// Pieces of 32 KiB in buffers of 8: tags are made over several parts, as checksums are.
void AuthenticatedFilesAreReadInPartsToo() {
  CudaFixture f;
  f.auth_key = "a secret of thirty-two bytes ....";
  f.config.ring_bytes = 8192;
  f.OpenCuda();
  CHECK(f.RoundTrip(4));
  std::string bytes = f.dir.Read(Files::Path(2));
  bytes[kPageBytes + 40000] ^= 1;
  f.dir.Write(Files::Path(2), bytes);
  f.Load(102, 2, 3);
  CHECK(f.All(102, FileStatus::kCorrupt));
}

void AStoreWaitsForTheKernelsThatWriteItsBlocks() {
  CudaFixture f;
  f.OpenCuda();
  ModelStream model;
  // The "kernel" writes all of layer 0's memory late; the store was submitted right behind it.
  const Pages layer = f.blocks.FirstPages();
  fake_cuda_fill_later(model.handle, layer.base, 0x5a, layer.page_bytes, 50'000);
  f.Submit(1, JobKind::kStore, 0, 1, model.handle);
  CHECK(f.All(1, FileStatus::kOk));
  const std::string block = f.blocks.Block(0);
  CHECK(block.substr(0, layer.page_bytes) == std::string(layer.page_bytes, 0x5a));
  f.blocks.Fill(0);
  f.Load(2, 0, 1);
  CHECK(f.All(2, FileStatus::kOk));
  CHECK(f.blocks.Block(0) == block);
}

void ALoadWaitsForTheClearingOfItsBlocks() {
  CudaFixture f;
  f.OpenCuda();
  f.Store(1, 0, 1);
  CHECK(f.All(1, FileStatus::kOk));
  const std::string block = f.blocks.Block(0);
  ModelStream model;
  const Pages layer = f.blocks.FirstPages();
  fake_cuda_fill_later(model.handle, layer.base, 0, layer.page_bytes, 50'000);
  f.Submit(2, JobKind::kLoad, 0, 1, model.handle);
  CHECK(f.All(2, FileStatus::kOk));
  cuStreamSynchronize(model.handle);
  CHECK(f.blocks.Block(0) == block);
}

// Every call of the driver that a transfer makes fails once: the file fails, the next one does not.
void ARefusedCopyFailsItsFileOnly() {
  for (const char* function : {kCopyCall, "cuMemcpyAsync", "cuEventRecord", "cuEventSynchronize",
                               "cuStreamWaitEvent", "cuCtxSetCurrent"}) {
    CudaFixture f;
    f.config.io_threads = 1;
    f.OpenCuda();
    f.Store(1, 0, 2);
    CHECK(f.All(1, FileStatus::kOk));
    const std::string before = f.blocks.Block(5);
    fake_cuda_fail(function, 2, 700);
    try {
      f.Load(2, 0, 1);
      const auto statuses = f.Statuses(2);
      CHECK(statuses.size() == 1);
      CHECK(statuses[0] == FileStatus::kOk || statuses[0] == FileStatus::kIoError);
    } catch (const std::runtime_error&) {  // at submission: the event could not be recorded
    }
    fake_cuda_reset();
    f.blocks.Fill(0);
    f.Load(3, 0, 2);
    CHECK(f.All(3, FileStatus::kOk));
    CHECK(f.blocks.Block(5) == before);
    CHECK(f.dir.Exists(Files::Path(0)));  // the file was not to blame
  }
}

// Block memory is the caller's again when the status is out, whatever call was refused.
void NoCopyIsUnderWayOnceAFailureIsHeard() {
  for (const char* function : {kCopyCall, "cuMemcpyAsync", "cuEventRecord", "cuEventSynchronize",
                               "cuStreamWaitEvent", "cuCtxSetCurrent"}) {
    for (int calls = 0; calls < 4; ++calls) {
      CudaFixture f;
      f.config.io_threads = 1;
      f.OpenCuda();
      f.Store(1, 0, 1);
      CHECK(f.All(1, FileStatus::kOk));
      fake_cuda_set_delay_us(2000);
      fake_cuda_fail(function, calls, 700);
      try {
        f.Load(2, 0, 1);
        CHECK(f.Statuses(2).size() == 1);
        f.blocks.Fill(0x44);
        const std::string before = f.blocks.All();
        std::this_thread::sleep_for(std::chrono::milliseconds(30));
        CHECK(f.blocks.All() == before);
      } catch (const std::runtime_error&) {  // at submission: the event could not be recorded
      }
      fake_cuda_reset();
    }
  }
}

void AFailedCopyOutPublishesNothing() {
  CudaFixture f;
  f.OpenCuda();
  fake_cuda_fail(kCopyCall, 0, 700);
  f.Store(1, 0, 1);
  CHECK(f.All(1, FileStatus::kIoError));
  CHECK(!f.dir.Exists(Files::Path(0)));
  CHECK(f.Eventually([&] { return f.dir.CountFiles("ns/tmp") == 0; }));
  f.Store(2, 0, 1);
  CHECK(f.All(2, FileStatus::kOk));
}

// After release, blocks are the model's again: what is published must be the bytes of before.
void ReleaseWaitsForCopiesUnderWay() {
  CudaFixture f;
  f.config.piece_bytes = 4096;
  f.config.step_bytes = 4096;
  fake_cuda_set_delay_us(1000);
  f.OpenCuda();
  std::vector<std::string> wanted;
  for (std::size_t i = 0; i < 16; ++i) wanted.push_back(f.blocks.Block(i));
  f.Store(1, 0, 4);
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  const std::vector<JobId> ids{1};
  f.engine->Release(ids);
  f.blocks.Fill(0x77);
  CHECK(f.engine->Drain(10));
  for (int i = 0; i < 4; ++i) {
    if (!f.dir.Exists(Files::Path(i))) continue;
    f.Load(10 + i, i, i + 1);
    CHECK(f.All(10 + i, FileStatus::kOk));
    for (std::size_t k = 0; k < 4; ++k) {
      const std::size_t id = 4 * static_cast<std::size_t>(i) + k;
      CHECK(f.blocks.Block(id) == wanted[id]);
    }
  }
}

// Storage hangs after the first piece, whose copy is late: the time-out waits for that copy, and
// nothing is written afterwards.
void AHungLoadWritesNothingAfterItsTimeOut() {
  CudaFixture f;
  f.config.piece_bytes = 4096;
  f.Prepare(0, 1);
  f.config.load_timeout_seconds = 0.5;
  fake_cuda_set_delay_us(800'000);  // the first piece's copy is under way when time is up
  f.OpenCuda();
  f.trap.Shut();
  std::atomic<int> reads{0};
  f.ops->SetHook([&](Call call) {
    if (call == Call::kRead && ++reads == 3) f.trap.Pass();
    return 0;
  });
  f.Load(1, 0, 1);
  CHECK(f.All(1, FileStatus::kTimedOut));
  f.blocks.Fill(0x33);
  const std::string before = f.blocks.All();
  f.trap.Open();
  CHECK(f.trap.AwaitPassed(1));
  CHECK(f.engine->Close(5));
  std::this_thread::sleep_for(std::chrono::milliseconds(1500));  // a stray copy would land now
  CHECK(f.blocks.All() == before);
}

void ADriverThatIsMissingOrIncompleteIsSaid() {
  for (const char* library : {"/nonexistent/libcuda.so.1", "libpthread.so.0"}) {
    try {
      MakeCudaDevice(0, library, CopyMethod::kAuto, kPageBytes);
      CHECK(false);
    } catch (const std::runtime_error& error) {
      CHECK(std::string(error.what()).find(library) != std::string::npos);
    }
  }
  CudaFixture f;
  fake_cuda_fail("cuInit", 0, 999);
  try {
    MakeCudaDevice(0, KVSHELF_FAKE_CUDA, CopyMethod::kAuto, kPageBytes);
    CHECK(false);
  } catch (const std::runtime_error& error) {
    CHECK(std::string(error.what()).find("cuInit") != std::string::npos);
  }
}

// Packed by the processor from staging memory, and unpacked there; a host reads the same files.
void PackedFilesComeFromAGpuAndGoToIt() {
  for (const bool write_behind : {false, true}) {
    CudaFixture f;
    f.config.write_behind = write_behind;
    f.config.compress = true;
    f.config.piece_bytes = 65536;
    f.blocks.FillNumbers(7);
    f.OpenCuda();
    std::vector<std::string> wanted;
    for (std::size_t block = 0; block < 160; ++block) wanted.push_back(f.blocks.Block(block));
    CHECK(f.RoundTrip(40));
    CHECK(f.engine->Stats().stored_file_bytes < 40 * f.file_bytes() * 95 / 100);
    CHECK(f.engine->Close(5));
    f.blocks.Fill(0);
    f.Open();
    f.Load(7, 0, 40);
    CHECK(f.All(7, FileStatus::kOk));
    for (std::size_t block = 0; block < 160; ++block) CHECK(f.blocks.Block(block) == wanted[block]);
  }
}

// One large file: its pieces are smaller than the staging buffers that several of them share.
void PiecesThatShareAStagingBufferArePacked() {
  CudaFixture f;
  f.config.compress = true;
  f.config.piece_bytes = 2 << 20;
  f.config.write_buffer_bytes = 8 << 20;
  f.blocks.FillNumbers(7);
  f.OpenCuda();
  Files files(0, 1);
  files.block_counts = {200};
  files.block_ids.resize(200);
  std::iota(files.block_ids.begin(), files.block_ids.end(), 3);
  files.batch.block_counts = files.block_counts;
  files.batch.block_ids = files.block_ids;
  f.engine->SubmitStore(1, files.batch);
  CHECK(f.All(1, FileStatus::kOk));
  CHECK(f.engine->Stats().stored_file_bytes < f.blocks.block_bytes() * 200 * 77 / 100);
  std::vector<std::string> wanted;
  for (std::size_t block = 3; block < 203; ++block) wanted.push_back(f.blocks.Block(block));
  f.blocks.Fill(0);
  f.engine->SubmitLoad(2, files.batch);
  CHECK(f.All(2, FileStatus::kOk));
  for (std::size_t block = 3; block < 203; ++block) {
    CHECK(f.blocks.Block(block) == wanted[block - 3]);
  }
}

}  // namespace
}  // namespace kvshelf

int main() {
  using namespace kvshelf;
  const testing::NamedTest tests[] = {
      {"every driver version moves the same bytes", EveryDriverVersionMovesTheSameBytes},
      {"without the kernel pages are copied by DMA", WithoutTheKernelPagesAreCopiedByDma},
      {"both ways keep the order of copies", BothWaysKeepTheOrderOfCopies},
      {"single copies are used when asked", SingleCopiesAreUsedWhenAsked},
      {"a buffer is not reused before its copy is done", ABufferIsNotReusedBeforeItsCopyIsDone},
      {"a piece larger than its buffers goes in parts", APieceLargerThanItsBuffersGoesInParts},
      {"staging that cannot be pinned is said", StagingThatCannotBePinnedIsSaidAtTheStart},
      {"unverified loads and write-through stores", UnverifiedAndThroughStoresWorkToo},
      {"authenticated files are read in parts", AuthenticatedFilesAreReadInPartsToo},
      {"a store waits for the kernels before it", AStoreWaitsForTheKernelsThatWriteItsBlocks},
      {"a load waits for the clearing before it", ALoadWaitsForTheClearingOfItsBlocks},
      {"a refused copy fails its file only", ARefusedCopyFailsItsFileOnly},
      {"no copy is under way once a failure is heard", NoCopyIsUnderWayOnceAFailureIsHeard},
      {"a failed copy out publishes nothing", AFailedCopyOutPublishesNothing},
      {"release waits for copies under way", ReleaseWaitsForCopiesUnderWay},
      {"a hung load writes nothing after its time-out", AHungLoadWritesNothingAfterItsTimeOut},
      {"a driver that is missing is said", ADriverThatIsMissingOrIncompleteIsSaid},
      {"packed files come from a GPU and go to it", PackedFilesComeFromAGpuAndGoToIt},
      {"pieces that share a staging buffer are packed", PiecesThatShareAStagingBufferArePacked},
  };
  return testing::RunTests(tests);
}
