// A CUDA driver made of host memory and threads, for tests without a GPU.
//
// It exports the symbols of libcuda.so.1 that kvshelf uses. "Device memory" is ordinary memory; a
// stream is a thread that performs its operations in order and late (a settable delay before each),
// so that code which does not wait for an event reads or overwrites bytes too early, and a test
// sees it. Like the driver, a batch copy refuses the legacy default stream.
//
// Controls, beside the driver's functions (see fake_cuda.h): delays, errors to inject, the driver
// version to claim, a stream operation that writes memory, and counters.
#include "fake_cuda.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

namespace {

constexpr int kSuccess = 0;
constexpr int kErrorInvalidValue = 1;

// One mutex guards all of the fake's state: it is for tests, not for speed.
struct State {
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::string, std::pair<int, int>> failures;  // function -> (calls to let pass, code)
  std::map<std::string, long> calls;
  int version = 13000;
  int delay_us = 0;
};

// Never destroyed: stream threads may run until the process ends.
State& TheState() {
  static auto* state = new State;
  return *state;
}

// Counts the call; the code to return instead of acting, or 0.
int Enter(const char* function) {
  State& state = TheState();
  const std::lock_guard lock(state.mutex);
  ++state.calls[function];
  const auto found = state.failures.find(function);
  if (found == state.failures.end()) return kSuccess;
  if (found->second.first-- > 0) return kSuccess;
  const int code = found->second.second;
  state.failures.erase(found);
  return code;
}

}  // namespace

// Completion of an event is counted: record() makes it wait for one more operation of a stream.
struct EventProgress {
  long recorded = 0;
  long completed = 0;
};

// What streams have queued of an event outlives its handle, as it does in the driver.
struct EventHandle {
  std::shared_ptr<EventProgress> progress = std::make_shared<EventProgress>();
};

struct StreamHandle {
  std::deque<std::function<void()>> operations;
  bool busy = false;
  bool stop = false;
  int error = 0;  // sticky, as a failed asynchronous operation is
  std::thread thread;

  StreamHandle() : thread([this] { Run(); }) {}

  void Push(std::function<void()> operation) {
    State& state = TheState();
    const std::lock_guard lock(state.mutex);
    operations.push_back(std::move(operation));
    state.changed.notify_all();
  }

  void Run() {
    State& state = TheState();
    std::unique_lock lock(state.mutex);
    while (true) {
      state.changed.wait(lock, [this] { return stop || !operations.empty(); });
      if (operations.empty()) return;
      auto operation = std::move(operations.front());
      operations.pop_front();
      busy = true;
      const auto delay = std::chrono::microseconds(state.delay_us);
      lock.unlock();
      if (delay.count() > 0) std::this_thread::sleep_for(delay);
      operation();
      lock.lock();
      busy = false;
      state.changed.notify_all();
    }
  }
};

namespace {

void Copy(StreamHandle* stream, std::uint64_t dst, std::uint64_t src, std::size_t bytes) {
  stream->Push([dst, src, bytes] {
    std::memcpy(reinterpret_cast<void*>(dst), reinterpret_cast<const void*>(src), bytes);
  });
}

int CopyBatch(const std::uint64_t* dsts, const std::uint64_t* srcs, const std::size_t* sizes,
              std::size_t count, std::size_t attribute_count, StreamHandle* stream) {
  if (stream == nullptr || count == 0 || attribute_count == 0) return kErrorInvalidValue;
  for (std::size_t i = 0; i < count; ++i) {
    if (sizes[i] == 0) return kErrorInvalidValue;
    Copy(stream, dsts[i], srcs[i], sizes[i]);
  }
  return kSuccess;
}

int CopyBatchV1(std::uint64_t* dsts, std::uint64_t* srcs, std::size_t* sizes, std::size_t count,
                void*, std::size_t*, std::size_t attribute_count, std::size_t* fail_index,
                StreamHandle* stream) {
  if (const int code = Enter("cuMemcpyBatchAsync"); code != kSuccess) {
    if (fail_index != nullptr) *fail_index = 0;
    return code;
  }
  return CopyBatch(dsts, srcs, sizes, count, attribute_count, stream);
}

int CopyBatchV2(std::uint64_t* dsts, std::uint64_t* srcs, std::size_t* sizes, std::size_t count,
                void*, std::size_t*, std::size_t attribute_count, StreamHandle* stream) {
  if (const int code = Enter("cuMemcpyBatchAsync"); code != kSuccess) return code;
  return CopyBatch(dsts, srcs, sizes, count, attribute_count, stream);
}

}  // namespace

extern "C" {

int cuInit(unsigned) { return Enter("cuInit"); }

int cuDriverGetVersion(int* version) {
  State& state = TheState();
  const std::lock_guard lock(state.mutex);
  *version = state.version;
  return kSuccess;
}

int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return Enter("cuDeviceGet");
}

int cuDevicePrimaryCtxRetain(void** context, int) {
  static int fake_context;
  *context = &fake_context;
  return Enter("cuDevicePrimaryCtxRetain");
}

int cuDevicePrimaryCtxRelease_v2(int) { return Enter("cuDevicePrimaryCtxRelease"); }

int cuCtxSetCurrent(void*) { return Enter("cuCtxSetCurrent"); }

int cuStreamCreate(StreamHandle** stream, unsigned) {
  if (const int code = Enter("cuStreamCreate"); code != kSuccess) return code;
  *stream = new StreamHandle;
  return kSuccess;
}

int cuStreamDestroy_v2(StreamHandle* stream) {
  if (const int code = Enter("cuStreamDestroy"); code != kSuccess) return code;
  {
    State& state = TheState();
    const std::lock_guard lock(state.mutex);
    stream->stop = true;
    state.changed.notify_all();
  }
  stream->thread.join();
  delete stream;
  return kSuccess;
}

int cuStreamWaitEvent(StreamHandle* stream, EventHandle* event, unsigned) {
  if (const int code = Enter("cuStreamWaitEvent"); code != kSuccess) return code;
  State& state = TheState();
  long target = 0;
  {
    const std::lock_guard lock(state.mutex);
    target = event->progress->recorded;
  }
  stream->Push([progress = event->progress, target] {
    State& inner = TheState();
    std::unique_lock lock(inner.mutex);
    inner.changed.wait(lock, [&] { return progress->completed >= target; });
  });
  return kSuccess;
}

int cuStreamSynchronize(StreamHandle* stream) {
  if (const int code = Enter("cuStreamSynchronize"); code != kSuccess) return code;
  State& state = TheState();
  std::unique_lock lock(state.mutex);
  state.changed.wait(lock, [&] { return stream->operations.empty() && !stream->busy; });
  return kSuccess;
}

int cuEventCreate(EventHandle** event, unsigned) {
  if (const int code = Enter("cuEventCreate"); code != kSuccess) return code;
  *event = new EventHandle;
  return kSuccess;
}

int cuEventDestroy_v2(EventHandle* event) {
  if (const int code = Enter("cuEventDestroy"); code != kSuccess) return code;
  delete event;
  return kSuccess;
}

int cuEventRecord(EventHandle* event, StreamHandle* stream) {
  if (const int code = Enter("cuEventRecord"); code != kSuccess) return code;
  State& state = TheState();
  long target = 0;
  {
    const std::lock_guard lock(state.mutex);
    target = ++event->progress->recorded;
    if (stream == nullptr) {  // the legacy default stream has nothing queued here
      event->progress->completed = target;
      return kSuccess;
    }
  }
  stream->Push([progress = event->progress, target] {
    State& inner = TheState();
    const std::lock_guard lock(inner.mutex);
    progress->completed = std::max(progress->completed, target);
    inner.changed.notify_all();
  });
  return kSuccess;
}

int cuEventSynchronize(EventHandle* event) {
  if (const int code = Enter("cuEventSynchronize"); code != kSuccess) return code;
  State& state = TheState();
  std::unique_lock lock(state.mutex);
  const std::shared_ptr<EventProgress> progress = event->progress;
  const long target = progress->recorded;
  state.changed.wait(lock, [&] { return progress->completed >= target; });
  return kSuccess;
}

int cuMemHostRegister_v2(void* memory, std::size_t bytes, unsigned) {
  if (const int code = Enter("cuMemHostRegister"); code != kSuccess) return code;
  return memory == nullptr || bytes == 0 ? kErrorInvalidValue : kSuccess;
}

int cuMemHostUnregister(void* memory) {
  if (const int code = Enter("cuMemHostUnregister"); code != kSuccess) return code;
  return memory == nullptr ? kErrorInvalidValue : kSuccess;
}

int cuMemcpyAsync(std::uint64_t dst, std::uint64_t src, std::size_t bytes, StreamHandle* stream) {
  if (const int code = Enter("cuMemcpyAsync"); code != kSuccess) return code;
  if (stream == nullptr) return kErrorInvalidValue;
  Copy(stream, dst, src, bytes);
  return kSuccess;
}

int cuModuleLoadData(void** module, const void* image) {
  if (const int code = Enter("cuModuleLoadData"); code != kSuccess) return code;
  if (std::strstr(static_cast<const char*>(image), ".entry kvshelf_copy_pages(") == nullptr) {
    return kErrorInvalidValue;
  }
  static int fake_module;
  *module = &fake_module;
  return kSuccess;
}

int cuModuleUnload(void*) { return Enter("cuModuleUnload"); }

int cuModuleGetFunction(void** function, void* module, const char* name) {
  if (const int code = Enter("cuModuleGetFunction"); code != kSuccess) return code;
  if (std::strcmp(name, "kvshelf_copy_pages") != 0) return kErrorInvalidValue;
  *function = module;
  return kSuccess;
}

int cuMemAlloc_v2(std::uint64_t* memory, std::size_t bytes) {
  if (const int code = Enter("cuMemAlloc"); code != kSuccess) return code;
  *memory = reinterpret_cast<std::uint64_t>(std::malloc(bytes));
  return kSuccess;
}

int cuMemFree_v2(std::uint64_t memory) {
  std::free(reinterpret_cast<void*>(memory));
  return Enter("cuMemFree");
}

// Does on the stream's thread what the kernel does, and checks what the kernel relies on.
int cuLaunchKernel(void* function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                   unsigned, StreamHandle* stream, void** parameters, void**) {
  if (const int code = Enter("cuLaunchKernel"); code != kSuccess) return code;
  if (function == nullptr || stream == nullptr) return kErrorInvalidValue;
  struct Part {
    std::uint64_t page;
    std::uint32_t offset;
    std::uint32_t bytes;
  };
  const auto table = *static_cast<std::uint64_t*>(parameters[0]);
  const auto count = *static_cast<std::uint32_t*>(parameters[1]);
  const auto piece = *static_cast<std::uint64_t*>(parameters[2]);
  const bool is_out = *static_cast<std::uint32_t*>(parameters[3]) != 0;
  stream->Push([=] {
    const auto* parts = reinterpret_cast<const Part*>(table);
    for (std::uint32_t i = 0; i < count; ++i) {
      const Part part = parts[i];
      if ((part.page | part.offset | part.bytes | piece) % 16 != 0) std::abort();
      auto* page = reinterpret_cast<void*>(part.page);
      auto* packed = reinterpret_cast<void*>(piece + part.offset);
      std::memcpy(is_out ? packed : page, is_out ? page : packed, part.bytes);
    }
  });
  return kSuccess;
}

int cuGetErrorName(int error, const char** name) {
  *name = nullptr;
  if (error >= 1000) return kErrorInvalidValue;  // newer than the driver
  *name = error == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR_FAKE";
  return kSuccess;
}

int cuGetProcAddress_v2(const char* symbol, void** function, int version, std::uint64_t, int*) {
  *function = nullptr;
  if (std::strcmp(symbol, "cuMemcpyBatchAsync") != 0) return kErrorInvalidValue;
  if (version >= 13000) {
    *function = reinterpret_cast<void*>(&CopyBatchV2);
  } else if (version >= 12080) {
    *function = reinterpret_cast<void*>(&CopyBatchV1);
  }
  return kSuccess;
}

void fake_cuda_set_version(int version) {
  State& state = TheState();
  const std::lock_guard lock(state.mutex);
  state.version = version;
}

void fake_cuda_set_delay_us(int delay_us) {
  State& state = TheState();
  const std::lock_guard lock(state.mutex);
  state.delay_us = delay_us;
}

void fake_cuda_fail(const char* function, int after_calls, int code) {
  State& state = TheState();
  const std::lock_guard lock(state.mutex);
  state.failures[function] = {after_calls, code};
}

long fake_cuda_calls(const char* function) {
  State& state = TheState();
  const std::lock_guard lock(state.mutex);
  return state.calls[function];
}

void fake_cuda_reset() {
  State& state = TheState();
  const std::lock_guard lock(state.mutex);
  state.failures.clear();
  state.calls.clear();
  state.version = 13000;
  state.delay_us = 0;
}

void fake_cuda_fill_later(StreamHandle* stream, void* memory, int value, std::size_t bytes,
                          int delay_us) {
  stream->Push([=] {
    std::this_thread::sleep_for(std::chrono::microseconds(delay_us));
    std::memset(memory, value, bytes);
  });
}

}  // extern "C"
