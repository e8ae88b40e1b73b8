#include "kvshelf/cuda_device.h"

#include <sys/mman.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <vector>

#include "cuda_driver.h"
#include "kvshelf/format.h"

namespace kvshelf {
namespace {

// Copies of one stream that may be under way at once: a thread has two staging buffers for pieces,
// and the third event spares a wait while the oldest is just being finished.
constexpr std::size_t kCopiesInFlight = 4;

constexpr std::size_t kHugePageBytes = 2 << 20;

void Check(const cuda::Driver& driver, cuda::Result result, const char* what) {
  if (result != cuda::kSuccess) {
    throw std::runtime_error(std::string(what) + " failed: " + driver.ErrorName(result));
  }
}

cuda::DevicePtr Address(const std::byte* memory) {
  return reinterpret_cast<cuda::DevicePtr>(memory);
}

// The retained primary context. Released when the last stream and buffer are gone.
class CudaContext {
 public:
  CudaContext(int ordinal, const std::string& library) : driver_(cuda::OpenDriver(library)) {
    Check(*driver_, driver_->device_get(&device_, ordinal), "cuDeviceGet");
    Check(*driver_, driver_->primary_ctx_retain(&context_, device_), "cuDevicePrimaryCtxRetain");
  }
  ~CudaContext() { driver_->primary_ctx_release(device_); }
  CudaContext(const CudaContext&) = delete;
  CudaContext& operator=(const CudaContext&) = delete;

  const cuda::Driver& driver() const { return *driver_; }
  // A thread's current context is its own; setting it again costs next to nothing.
  bool Enter() const { return driver_->ctx_set_current(context_) == cuda::kSuccess; }

 private:
  std::shared_ptr<const cuda::Driver> driver_;
  cuda::Device device_ = 0;
  cuda::Context context_ = nullptr;
};

// Begin... is called by the owning thread only; the waits by any thread.
class CudaStream final : public CopyStream {
 public:
  CudaStream(std::shared_ptr<const CudaContext> context, CopyMethod method)
      : context_(std::move(context)), driver_(context_->driver()) {
    if (!context_->Enter()) throw std::runtime_error("cuCtxSetCurrent failed");
    batch_ = method != CopyMethod::kSingle &&
             (driver_.batch_v1 != nullptr || driver_.batch_v2 != nullptr);
    Check(driver_, driver_.stream_create(&stream_, cuda::kStreamNonBlocking), "cuStreamCreate");
    try {
      for (cuda::Event& event : events_) {
        Check(driver_, driver_.event_create(&event, cuda::kEventDisableTiming), "cuEventCreate");
      }
    } catch (...) {  // what was not constructed is not destroyed either
      Destroy();
      throw;
    }
  }

  ~CudaStream() override {
    context_->Enter();
    driver_.stream_synchronize(stream_);
    Destroy();
  }

  bool BeginOut(std::span<const Segment> segments, std::byte* staging) override {
    Prepare(segments.size());
    for (const Segment& segment : segments) {
      Add(Address(staging), Address(segment.data), segment.bytes);
      staging += segment.bytes;
    }
    return Issue();
  }

  bool BeginIn(const std::byte* staging, std::span<const Segment> segments) override {
    Prepare(segments.size());
    for (const Segment& segment : segments) {
      Add(Address(segment.data), Address(staging), segment.bytes);
      staging += segment.bytes;
    }
    return Issue();
  }

  bool After(const void* event) override {
    if (event == nullptr) return true;
    auto* handle = static_cast<cuda::Event>(const_cast<void*>(event));
    return context_->Enter() && driver_.stream_wait_event(stream_, handle, 0) == cuda::kSuccess;
  }

  std::uint64_t begun() const override { return begun_.load(std::memory_order_acquire); }

  bool WaitFor(std::uint64_t copies) override {
    if (copies == 0) return true;
    if (context_->Enter() &&
        driver_.event_synchronize(events_[copies % kCopiesInFlight]) == cuda::kSuccess) {
      return true;
    }
    Settle();
    return false;
  }

 private:
  // After a call that was refused nobody knows how far the copies are. Whoever hears of the failure
  // takes block memory for free, so they have to be over.
  void Settle() {
    context_->Enter();
    driver_.stream_synchronize(stream_);
  }

  void Destroy() {
    for (cuda::Event event : events_) {
      if (event != nullptr) driver_.event_destroy(event);
    }
    driver_.stream_destroy(stream_);
  }

  void Prepare(std::size_t count) {
    dsts_.clear();
    srcs_.clear();
    sizes_.clear();
    dsts_.reserve(count);
    srcs_.reserve(count);
    sizes_.reserve(count);
  }

  void Add(cuda::DevicePtr dst, cuda::DevicePtr src, std::size_t bytes) {
    dsts_.push_back(dst);
    srcs_.push_back(src);
    sizes_.push_back(bytes);
  }

  bool Issue() {
    const std::uint64_t copy = begun_.load(std::memory_order_relaxed) + 1;
    // The event of this slot is taken over, so its copy must be done.
    if (copy > kCopiesInFlight && !WaitFor(copy - kCopiesInFlight)) return false;
    if (!context_->Enter()) return false;
    const bool issued = batch_ && dsts_.size() > 1 ? IssueBatch() : IssueSingly();
    // Recorded even after a failure: part of the copies may have been issued, and whoever waits
    // must wait for those.
    const bool recorded =
        driver_.event_record(events_[copy % kCopiesInFlight], stream_) == cuda::kSuccess;
    begun_.store(copy, std::memory_order_release);
    if (!recorded) Settle();  // its event tells of an older copy
    return issued && recorded;
  }

  bool IssueSingly() {
    for (std::size_t i = 0; i < dsts_.size(); ++i) {
      if (driver_.memcpy_async(dsts_[i], srcs_[i], sizes_[i], stream_) != cuda::kSuccess) {
        return false;
      }
    }
    return true;
  }

  bool IssueBatch() {
    cuda::MemcpyAttributes attributes;
    attributes.flags = cuda::kOverlapWithCompute;
    std::size_t first = 0;  // the attributes hold from segment 0 on
    if (driver_.batch_v2 != nullptr) {
      return driver_.batch_v2(dsts_.data(), srcs_.data(), sizes_.data(), dsts_.size(), &attributes,
                              &first, 1, stream_) == cuda::kSuccess;
    }
    std::size_t failed = 0;
    return driver_.batch_v1(dsts_.data(), srcs_.data(), sizes_.data(), dsts_.size(), &attributes,
                            &first, 1, &failed, stream_) == cuda::kSuccess;
  }

  std::shared_ptr<const CudaContext> context_;
  const cuda::Driver& driver_;
  bool batch_ = false;
  cuda::Stream stream_ = nullptr;
  std::array<cuda::Event, kCopiesInFlight> events_{};
  std::atomic<std::uint64_t> begun_{0};
  std::vector<cuda::DevicePtr> dsts_;
  std::vector<cuda::DevicePtr> srcs_;
  std::vector<std::size_t> sizes_;
};

class CudaDevice final : public Device {
 public:
  CudaDevice(int ordinal, const std::string& library, CopyMethod method)
      : context_(std::make_shared<const CudaContext>(ordinal, library)), method_(method) {}

  // Huge pages, pinned: what a vLLM engine's loads copied through on an H100 went a fifth faster
  // than through memory of cuMemHostAlloc, whose 4 KiB pages miss the processor's address cache.
  StagingBuffer AllocateStaging(std::size_t bytes) override {
    const std::size_t alignment = bytes < kHugePageBytes ? kPageBytes : kHugePageBytes;
    const std::size_t whole = (bytes + alignment - 1) / alignment * alignment;
    auto* const memory = static_cast<std::byte*>(std::aligned_alloc(alignment, whole));
    if (memory == nullptr) throw std::bad_alloc();
    if (alignment == kHugePageBytes) ::madvise(memory, whole, MADV_HUGEPAGE);  // only a wish
    std::memset(memory, 0, whole);  // pages come when they are touched
    if (!context_->Enter() || context_->driver().mem_host_register(
                                  memory, whole, cuda::kHostRegisterPortable) != cuda::kSuccess) {
      std::free(memory);
      throw std::bad_alloc();
    }
    return StagingBuffer(memory, bytes, [context = context_](std::byte* data, std::size_t) {
      context->Enter();
      context->driver().mem_host_unregister(data);
      std::free(data);
    });
  }

  std::shared_ptr<CopyStream> NewStream() override {
    return std::make_shared<CudaStream>(context_, method_);
  }

  // An event on the caller's stream, owned by the returned handle. Copies begun after
  // CopyStream::After(handle) see the work that the stream had queued.
  std::shared_ptr<void> RecordEvent(std::uintptr_t stream) override {
    if (!context_->Enter()) throw std::runtime_error("cuCtxSetCurrent failed");
    const cuda::Driver& driver = context_->driver();
    cuda::Event event = nullptr;
    Check(driver, driver.event_create(&event, cuda::kEventDisableTiming), "cuEventCreate");
    // The driver destroys an event only once nothing waits for it any more.
    std::shared_ptr<void> owner(event, [context = context_](void* handle) {
      context->Enter();
      context->driver().event_destroy(static_cast<cuda::Event>(handle));
    });
    Check(driver, driver.event_record(event, reinterpret_cast<cuda::Stream>(stream)),
          "cuEventRecord");
    return owner;
  }

  bool host_accessible() const override { return false; }

 private:
  std::shared_ptr<const CudaContext> context_;
  CopyMethod method_;
};

}  // namespace

std::shared_ptr<Device> MakeCudaDevice(int ordinal, const std::string& library, CopyMethod method) {
  return std::make_shared<CudaDevice>(ordinal, library, method);
}

}  // namespace kvshelf
