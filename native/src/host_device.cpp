#include <cstring>

#include "kvshelf/device.h"

namespace kvshelf {
namespace {

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
      std::memcpy(segment.data, staging, segment.bytes);
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
