#include <cstdint>
#include <cstring>

#include "kvshelf/device.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace kvshelf {
namespace {

// Block memory is far larger than any cache and not read again soon. Ordinary stores would first
// fetch each line that they overwrite, and push out of cache what the next step needs.
void CopyPastCache(std::byte* to, const std::byte* from, std::size_t bytes) {
#if defined(__x86_64__)
  constexpr std::size_t kLine = 64;
  const std::size_t head = (0 - reinterpret_cast<std::uintptr_t>(to)) % kLine;
  if (bytes >= head + kLine) {
    std::memcpy(to, from, head);
    to += head;
    from += head;
    bytes -= head;
    for (; bytes >= kLine; to += kLine, from += kLine, bytes -= kLine) {
      const auto* source = reinterpret_cast<const __m128i*>(from);
      auto* target = reinterpret_cast<__m128i*>(to);
      const __m128i a = _mm_loadu_si128(source);
      const __m128i b = _mm_loadu_si128(source + 1);
      const __m128i c = _mm_loadu_si128(source + 2);
      const __m128i d = _mm_loadu_si128(source + 3);
      _mm_stream_si128(target, a);
      _mm_stream_si128(target + 1, b);
      _mm_stream_si128(target + 2, c);
      _mm_stream_si128(target + 3, d);
    }
    _mm_sfence();  // before anybody is told that the bytes are there
  }
#endif
  std::memcpy(to, from, bytes);
}

class HostStream final : public CopyStream {
 public:
  bool BeginOut(std::span<const Segment> segments, std::byte* staging) override {
    for (const Segment& segment : segments) {
      std::memcpy(staging, segment.data, segment.bytes);
      staging += segment.bytes;
    }
    return true;
  }

  bool BeginIn(const std::byte* staging, std::span<const Segment> segments) override {
    for (const Segment& segment : segments) {
      CopyPastCache(segment.data, staging, segment.bytes);
      staging += segment.bytes;
    }
    return true;
  }

  bool After(const void*) override { return true; }
  std::uint64_t begun() const override { return 0; }
  bool WaitFor(std::uint64_t) override { return true; }
};

class HostDevice final : public Device {
 public:
  StagingBuffer AllocateStaging(std::size_t bytes) override { return AllocateAligned(bytes); }
  std::shared_ptr<CopyStream> NewStream() override { return std::make_shared<HostStream>(); }
  std::shared_ptr<void> RecordEvent(std::uintptr_t) override { return nullptr; }
  bool host_accessible() const override { return true; }
};

}  // namespace

std::shared_ptr<Device> MakeHostDevice() { return std::make_shared<HostDevice>(); }

}  // namespace kvshelf
