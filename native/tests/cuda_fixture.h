// An engine over block memory that only the fake CUDA driver copies.
#pragma once

#include "engine_fixture.h"
#include "fake_cuda/fake_cuda.h"
#include "kvshelf/cuda_device.h"

namespace kvshelf::testing {

struct CudaFixture : EngineFixture {
  CopyMethod method = CopyMethod::kAuto;
  std::string auth_key;

  CudaFixture() {
    fake_cuda_reset();
    config.load_only_threads = 0;
  }
  ~CudaFixture() {
    engine.reset();
    fake_cuda_reset();
  }
  void OpenCuda() {
    EngineSetup setup = Setup();
    setup.auth_key = auth_key;
    setup.device = MakeCudaDevice(0, KVSHELF_FAKE_CUDA, method, config.piece_bytes);
    engine.emplace(std::move(setup));
  }
  void Submit(JobId id, JobKind kind, int begin, int end, StreamHandle* stream) {
    Files files(begin, end);
    files.batch.stream = reinterpret_cast<std::uintptr_t>(stream);
    kind == JobKind::kStore ? engine->SubmitStore(id, files.batch)
                            : engine->SubmitLoad(id, files.batch);
  }
  // Stores files 0 to `count` - 1 and loads them back into cleared memory.
  bool RoundTrip(int count) {
    const std::string before = blocks.All();
    Store(100, 0, count);
    if (!All(100, FileStatus::kOk)) return false;
    std::vector<std::string> wanted;
    for (int i = 0; i < count * 4; ++i) wanted.push_back(blocks.Block(static_cast<std::size_t>(i)));
    blocks.Fill(0);
    Load(101, 0, count);
    if (!All(101, FileStatus::kOk)) return false;
    for (int i = 0; i < count * 4; ++i) {
      if (blocks.Block(static_cast<std::size_t>(i)) != wanted[static_cast<std::size_t>(i)]) {
        return false;
      }
    }
    return true;
  }
};

}  // namespace kvshelf::testing
