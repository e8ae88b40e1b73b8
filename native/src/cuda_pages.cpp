#include "cuda_pages.h"

#include <algorithm>

namespace kvshelf {
namespace {

// Larger pages are copied as fast by a DMA operation each.
constexpr std::size_t kPageBytesMax = 32 << 10;
// Smaller ones on average would need a longer table. No model has such pages.
constexpr std::size_t kPageBytesMin = 512;
// A warp copies one part: longer segments are cut, so that all warps have something to do.
constexpr std::size_t kPartBytesMax = 16 << 10;
constexpr std::size_t kFewSegments = 4;
constexpr unsigned kBlocks = 32;
constexpr unsigned kThreads = 256;
constexpr std::uint64_t kVectorBytes = 16;

// void copy(const PagePart* table, u32 count, byte* piece, u32 is_out): a warp a part, in vectors
// of 16 bytes, four loads of a thread under way at once. Written by hand in PTX of version 6.0, so
// that any driver from 9.0 on compiles it for any GPU from sm_70 on. Source: NVIDIA's PTX ISA.
constexpr const char* kKernel = R"(
.version 6.0
.target sm_70
.address_size 64
.visible .entry kvshelf_copy_pages(.param .u64 table_p, .param .u32 count_p,
                                   .param .u64 piece_p, .param .u32 is_out_p)
{
  .reg .pred %done, %more, %out;
  .reg .b32 %count, %t, %b, %n, %g, %warp, %warps, %lane, %offset, %bytes, %at, %ahead, %flag;
  .reg .b32 %a<16>;
  .reg .b64 %table, %piece, %entry, %page, %part, %from, %to, %wide;

  ld.param.u64 %table, [table_p];
  ld.param.u32 %count, [count_p];
  ld.param.u64 %piece, [piece_p];
  ld.param.u32 %flag, [is_out_p];
  cvta.to.global.u64 %table, %table;
  cvta.to.global.u64 %piece, %piece;
  setp.ne.u32 %out, %flag, 0;
  mov.u32 %t, %tid.x;
  mov.u32 %b, %ctaid.x;
  mov.u32 %n, %ntid.x;
  mov.u32 %g, %nctaid.x;
  mad.lo.u32 %warp, %b, %n, %t;
  shr.u32 %warp, %warp, 5;
  mul.lo.u32 %warps, %n, %g;
  shr.u32 %warps, %warps, 5;
  and.b32 %lane, %t, 31;
  shl.b32 %lane, %lane, 4;

next_part:
  setp.ge.u32 %done, %warp, %count;
  @%done bra end;
  mul.wide.u32 %entry, %warp, 16;
  add.s64 %entry, %entry, %table;
  ld.global.u64 %page, [%entry];
  ld.global.v2.u32 {%offset, %bytes}, [%entry+8];
  cvta.to.global.u64 %page, %page;
  cvt.u64.u32 %part, %offset;
  add.s64 %part, %part, %piece;
  selp.b64 %from, %page, %part, %out;
  selp.b64 %to, %part, %page, %out;
  mov.u32 %at, %lane;
  cvt.u64.u32 %wide, %lane;
  add.s64 %from, %from, %wide;
  add.s64 %to, %to, %wide;

four:
  add.u32 %ahead, %at, 1536;
  setp.ge.u32 %more, %ahead, %bytes;
  @%more bra one;
  ld.global.v4.u32 {%a0, %a1, %a2, %a3}, [%from];
  ld.global.v4.u32 {%a4, %a5, %a6, %a7}, [%from+512];
  ld.global.v4.u32 {%a8, %a9, %a10, %a11}, [%from+1024];
  ld.global.v4.u32 {%a12, %a13, %a14, %a15}, [%from+1536];
  st.global.v4.u32 [%to], {%a0, %a1, %a2, %a3};
  st.global.v4.u32 [%to+512], {%a4, %a5, %a6, %a7};
  st.global.v4.u32 [%to+1024], {%a8, %a9, %a10, %a11};
  st.global.v4.u32 [%to+1536], {%a12, %a13, %a14, %a15};
  add.u32 %at, %at, 2048;
  add.s64 %from, %from, 2048;
  add.s64 %to, %to, 2048;
  bra four;

one:
  setp.ge.u32 %more, %at, %bytes;
  @%more bra part_done;
  ld.global.v4.u32 {%a0, %a1, %a2, %a3}, [%from];
  st.global.v4.u32 [%to], {%a0, %a1, %a2, %a3};
  add.u32 %at, %at, 512;
  add.s64 %from, %from, 512;
  add.s64 %to, %to, 512;
  bra one;

part_done:
  add.u32 %warp, %warp, %warps;
  bra next_part;

end:
  ret;
}
)";

cuda::DevicePtr Address(const void* memory) { return reinterpret_cast<cuda::DevicePtr>(memory); }

}  // namespace

std::shared_ptr<PageCopier> PageCopier::Make(std::shared_ptr<const CudaContext> context,
                                             std::size_t piece_bytes) {
  std::shared_ptr<PageCopier> made(new PageCopier(std::move(context), piece_bytes));
  return made->Load() ? made : nullptr;
}

PageCopier::PageCopier(std::shared_ptr<const CudaContext> context, std::size_t piece_bytes)
    : context_(std::move(context)),
      driver_(context_->driver()),
      piece_bytes_(piece_bytes),
      parts_max_(piece_bytes / kPageBytesMin) {}

PageCopier::~PageCopier() {
  context_->Enter();
  for (Lane& lane : lanes_) {
    if (lane.stream != nullptr) {
      driver_.stream_synchronize(lane.stream);
      driver_.stream_destroy(lane.stream);
    }
    if (lane.piece != 0) driver_.pages.mem_free(lane.piece);
  }
  if (module_ != nullptr) driver_.pages.module_unload(module_);
}

bool PageCopier::Load() {
  const cuda::PageFunctions& functions = driver_.pages;
  if (!functions.complete() || parts_max_ == 0 || !context_->Enter()) return false;
  if (functions.module_load_data(&module_, kKernel) != cuda::kSuccess) {
    module_ = nullptr;
    return false;
  }
  if (functions.module_get_function(&kernel_, module_, "kvshelf_copy_pages") != cuda::kSuccess) {
    return false;
  }
  for (Lane& lane : lanes_) {
    if (driver_.stream_create(&lane.stream, cuda::kStreamNonBlocking) != cuda::kSuccess) {
      lane.stream = nullptr;
      return false;
    }
    if (functions.mem_alloc(&lane.piece, piece_bytes_ + table_bytes()) != cuda::kSuccess) {
      lane.piece = 0;
      return false;
    }
    lane.table = lane.piece + piece_bytes_;
  }
  return true;
}

bool PageCopier::Suits(std::span<const Segment> segments) const {
  if (segments.size() < kFewSegments) return false;
  std::size_t total = 0;
  std::uint64_t low_bits = 0;
  for (const Segment& segment : segments) {
    total += segment.bytes;
    low_bits |= Address(segment.data) | segment.bytes;
  }
  return total <= piece_bytes_ && total <= segments.size() * kPageBytesMax &&
         total >= segments.size() * kPageBytesMin && low_bits % kVectorBytes == 0 &&
         segments.size() + total / kPartBytesMax <= parts_max_;
}

Lane& PageCopier::LaneOf(Direction direction) {
  const auto first = static_cast<std::size_t>(direction);
  const std::size_t number = next_.at(first).fetch_add(1, std::memory_order_relaxed);
  return lanes_.at(first * kLanesADirection + number % kLanesADirection);
}

bool PageCopier::Queue(Lane& lane, Direction direction, std::byte* staging,
                       std::span<const Segment> segments, PagePart* table) const {
  std::uint32_t count = 0;
  std::uint32_t offset = 0;
  for (const Segment& segment : segments) {
    for (std::size_t done = 0; done < segment.bytes;) {
      const auto bytes = static_cast<std::uint32_t>(std::min(segment.bytes - done, kPartBytesMax));
      table[count++] = {Address(segment.data) + done, offset, bytes};
      done += bytes;
      offset += bytes;
    }
  }
  const bool is_out = direction == Direction::kOut;
  if (driver_.memcpy_async(lane.table, Address(table), count * sizeof(PagePart), lane.stream) !=
      cuda::kSuccess) {
    return false;
  }
  if (!is_out &&
      driver_.memcpy_async(lane.piece, Address(staging), offset, lane.stream) != cuda::kSuccess) {
    return false;
  }
  std::uint32_t flag = is_out ? 1 : 0;
  std::array<void*, 4> parameters = {&lane.table, &count, &lane.piece, &flag};
  if (driver_.pages.launch_kernel(kernel_, kBlocks, 1, 1, kThreads, 1, 1, 0, lane.stream,
                                  parameters.data(), nullptr) != cuda::kSuccess) {
    return false;
  }
  return !is_out ||
         driver_.memcpy_async(Address(staging), lane.piece, offset, lane.stream) == cuda::kSuccess;
}

}  // namespace kvshelf
