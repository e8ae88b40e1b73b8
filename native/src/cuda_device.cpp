#include "kvshelf/cuda_device.h"

#include <sys/mman.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <vector>

#include "cuda_context.h"
#include "cuda_pages.h"
#include "kvshelf/format.h"

namespace kvshelf {
namespace {

// Copies of one stream that may be under way at once: a thread has two staging buffers for pieces,
// and the third event spares a wait while the oldest is just being finished.
constexpr std::size_t kCopiesInFlight = 4;

constexpr std::size_t kHugePageBytes = 2 << 20;

cuda::DevicePtr Address(const std::byte* memory) {
  return reinterpret_cast<cuda::DevicePtr>(memory);
}

// Pinned memory of whole pages, in huge ones where it is large: what a vLLM engine's loads copied
// through on an H100 went a fifth faster than through memory of cuMemHostAlloc, whose 4 KiB pages
// miss the processor's address cache.
StagingBuffer AllocatePinned(const std::shared_ptr<const CudaContext>& context, std::size_t bytes) {
  const std::size_t alignment = bytes < kHugePageBytes ? kPageBytes : kHugePageBytes;
  const std::size_t whole = (bytes + alignment - 1) / alignment * alignment;
  auto* const memory = static_cast<std::byte*>(std::aligned_alloc(alignment, whole));
  if (memory == nullptr) throw std::bad_alloc();
  if (alignment == kHugePageBytes) ::madvise(memory, whole, MADV_HUGEPAGE);  // only a wish
  std::memset(memory, 0, whole);  // pages come when they are touched
  if (!context->Enter() || context->driver().mem_host_register(
                               memory, whole, cuda::kHostRegisterPortable) != cuda::kSuccess) {
    std::free(memory);
    throw std::bad_alloc();
  }
  return StagingBuffer(memory, bytes, [context](std::byte* data, std::size_t) {
    context->Enter();
    context->driver().mem_host_unregister(data);
    std::free(data);
  });
}

// Begin... is called by the owning thread only; the waits by any thread.
//
// A copy goes through the stream of its own, by DMA, or through a lane of the PageCopier. Whatever
// the way, copies end in the order in which they were begun: a stream that takes over waits for the
// last event of the one before.
class CudaStream final : public CopyStream {
 public:
  CudaStream(std::shared_ptr<const CudaContext> context, CopyMethod method,
             std::shared_ptr<PageCopier> pages)
      : context_(std::move(context)), driver_(context_->driver()), pages_(std::move(pages)) {
    if (!context_->Enter()) throw std::runtime_error("cuCtxSetCurrent failed");
    batch_ = method != CopyMethod::kSingle &&
             (driver_.batch_v1 != nullptr || driver_.batch_v2 != nullptr);
    if (pages_ != nullptr) {
      tables_ = AllocatePinned(context_, kCopiesInFlight * pages_->table_bytes());
    }
    Check(driver_, driver_.stream_create(&stream_, cuda::kStreamNonBlocking), "cuStreamCreate");
    last_ = stream_;
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
    Settle();
    Destroy();
  }

  bool BeginOut(std::span<const Segment> segments, std::byte* staging) override {
    return Begin(Direction::kOut, segments, staging);
  }

  bool BeginIn(const std::byte* staging, std::span<const Segment> segments) override {
    return Begin(Direction::kIn, segments, const_cast<std::byte*>(staging));
  }

  bool After(const void* event) override {
    if (event == nullptr) return true;
    auto* handle = static_cast<cuda::Event>(const_cast<void*>(event));
    is_ahead_ = true;
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
    for (const auto& lane : lanes_) {
      if (Lane* used = lane.load(); used != nullptr) driver_.stream_synchronize(used->stream);
    }
  }

  void Destroy() {
    for (cuda::Event event : events_) {
      if (event != nullptr) driver_.event_destroy(event);
    }
    driver_.stream_destroy(stream_);
  }

  bool Begin(Direction direction, std::span<const Segment> segments, std::byte* staging) {
    const std::uint64_t copy = begun_.load(std::memory_order_relaxed) + 1;
    // The event of this slot is taken over, so its copy must be done.
    if (copy > kCopiesInFlight && !WaitFor(copy - kCopiesInFlight)) return false;
    if (!context_->Enter()) return false;
    if (pages_ != nullptr && pages_->Suits(segments)) {
      Lane& lane = LaneOf(direction);
      PagePart* const table = TableOf(copy);
      const LockGuard lock(lane.mutex);
      const bool queued =
          TakeOver(lane.stream) && pages_->Queue(lane, direction, staging, segments, table);
      return Begun(copy, lane.stream) && queued;
    }
    Prepare(direction, segments, staging);
    const bool queued =
        TakeOver(stream_) && (batch_ && dsts_.size() > 1 ? IssueBatch() : IssueSingly());
    return Begun(copy, stream_) && queued;
  }

  // Recorded even after a failure: part of the copies may have been issued, and whoever waits must
  // wait for those.
  bool Begun(std::uint64_t copy, cuda::Stream stream) {
    const bool recorded =
        driver_.event_record(events_[copy % kCopiesInFlight], stream) == cuda::kSuccess;
    begun_.store(copy, std::memory_order_release);
    last_ = stream;
    if (!recorded) Settle();  // its event tells of an older copy
    return recorded;
  }

  // Makes `stream` go on behind all that was begun, and behind what copies were told to come after.
  bool TakeOver(cuda::Stream stream) {
    if (stream != last_ && last_ != stream_) {
      cuda::Event last = events_[begun_.load(std::memory_order_relaxed) % kCopiesInFlight];
      if (driver_.stream_wait_event(stream_, last, 0) != cuda::kSuccess) return false;
      is_ahead_ = true;
    }
    if (stream == stream_) {
      is_ahead_ = true;  // of the lanes
      return true;
    }
    if (!is_ahead_) return true;
    if (driver_.event_record(order_, stream_) != cuda::kSuccess ||
        driver_.stream_wait_event(stream, order_, 0) != cuda::kSuccess) {
      return false;
    }
    is_ahead_ = false;
    return true;
  }

  Lane& LaneOf(Direction direction) {
    auto& lane = lanes_.at(static_cast<std::size_t>(direction));
    if (lane.load() == nullptr) lane.store(&pages_->LaneOf(direction));
    return *lane.load();
  }

  PagePart* TableOf(std::uint64_t copy) {
    std::byte* const table = tables_.data() + copy % kCopiesInFlight * pages_->table_bytes();
    return reinterpret_cast<PagePart*>(table);
  }

  void Prepare(Direction direction, std::span<const Segment> segments, std::byte* staging) {
    dsts_.clear();
    srcs_.clear();
    sizes_.clear();
    for (const Segment& segment : segments) {
      (direction == Direction::kOut ? dsts_ : srcs_).push_back(Address(staging));
      (direction == Direction::kOut ? srcs_ : dsts_).push_back(Address(segment.data));
      sizes_.push_back(segment.bytes);
      staging += segment.bytes;
    }
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
  std::shared_ptr<PageCopier> pages_;
  StagingBuffer tables_;  // pinned, one a copy in flight
  bool batch_ = false;
  cuda::Stream stream_ = nullptr;
  std::array<cuda::Event, kCopiesInFlight + 1> events_{};
  cuda::Event& order_ = events_[kCopiesInFlight];  // of stream_, for a lane to come after
  std::array<std::atomic<Lane*>, 2> lanes_{};      // by direction, once used
  cuda::Stream last_ = nullptr;                    // of the last copy begun
  bool is_ahead_ = false;  // stream_ has what the lane in use has not waited for
  std::atomic<std::uint64_t> begun_{0};
  std::vector<cuda::DevicePtr> dsts_;
  std::vector<cuda::DevicePtr> srcs_;
  std::vector<std::size_t> sizes_;
};

class CudaDevice final : public Device {
 public:
  CudaDevice(int ordinal, const std::string& library, CopyMethod method, std::size_t piece_bytes)
      : context_(std::make_shared<const CudaContext>(ordinal, library)), method_(method) {
    if (method == CopyMethod::kAuto) pages_ = PageCopier::Make(context_, piece_bytes);
  }

  StagingBuffer AllocateStaging(std::size_t bytes) override {
    return AllocatePinned(context_, bytes);
  }

  std::shared_ptr<CopyStream> NewStream() override {
    return std::make_shared<CudaStream>(context_, method_, pages_);
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
  std::shared_ptr<PageCopier> pages_;  // null: pages are copied by DMA
};

}  // namespace

std::shared_ptr<Device> MakeCudaDevice(int ordinal, const std::string& library, CopyMethod method,
                                       std::size_t piece_bytes) {
  return std::make_shared<CudaDevice>(ordinal, library, method, piece_bytes);
}

}  // namespace kvshelf
