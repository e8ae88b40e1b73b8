// Copies of many small pages: one DMA operation for a whole piece, and a kernel of our own that
// scatters the piece to its pages, or gathers it from them. A DMA operation a page reaches a third
// of the bus at pages of 8 KiB (benchmarks/results/gpu/README.md).
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cuda_context.h"
#include "kvshelf/memory.h"
#include "kvshelf/thread_safety.h"

namespace kvshelf {

// A part of a page, as the kernel reads it from its table.
struct PagePart {
  cuda::DevicePtr page = 0;
  std::uint32_t offset = 0;  // of the part in the piece
  std::uint32_t bytes = 0;
};
static_assert(sizeof(PagePart) == 16);

enum class Direction { kIn, kOut };

// A stream that launches kernels, with the GPU memory that a piece passes through. Its operations
// run one after the other, so one piece's memory is enough. Several threads share a lane: kernels
// launched from many streams take compute from the model (two lanes a direction take 1 to 3%).
struct Lane {
  Mutex mutex;  // held while a copy's operations are queued
  cuda::Stream stream = nullptr;
  cuda::DevicePtr piece = 0;
  cuda::DevicePtr table = 0;
};

// The kernel and its lanes. Thread-safe.
class PageCopier {
 public:
  // `piece_bytes`: the largest copy. Null where the driver lacks what it needs, the GPU does not
  // take the kernel, or has no memory for the lanes: pages are then copied by DMA one by one.
  static std::shared_ptr<PageCopier> Make(std::shared_ptr<const CudaContext> context,
                                          std::size_t piece_bytes);
  ~PageCopier();
  PageCopier(const PageCopier&) = delete;
  PageCopier& operator=(const PageCopier&) = delete;

  // Whether the kernel is the faster way for these segments, and can do it.
  bool Suits(std::span<const Segment> segments) const;

  // Most parts of one copy: the length of a host table.
  std::size_t parts_max() const { return parts_max_; }
  std::size_t table_bytes() const { return parts_max_ * sizeof(PagePart); }

  // A lane for a new thread's copies.
  Lane& LaneOf(Direction direction);

  // Queues the copy on the lane. `table` is pinned, parts_max() long,
  // and belongs to the copy until it is over. False: refused; part of it may have been queued.
  bool Queue(Lane& lane, Direction direction, std::byte* staging, std::span<const Segment> segments,
             PagePart* table) const KVSHELF_REQUIRES(lane.mutex);

 private:
  PageCopier(std::shared_ptr<const CudaContext> context, std::size_t piece_bytes);
  bool Load();

  static constexpr std::size_t kLanesADirection = 2;

  std::shared_ptr<const CudaContext> context_;
  const cuda::Driver& driver_;
  std::size_t piece_bytes_;
  std::size_t parts_max_;
  cuda::Module module_ = nullptr;
  cuda::Function kernel_ = nullptr;
  std::array<Lane, 2 * kLanesADirection> lanes_;
  std::array<std::atomic<std::size_t>, 2> next_{};
};

}  // namespace kvshelf
