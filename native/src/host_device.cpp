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

  bool Wait() override { return true; }
};

class HostDevice final : public Device {
 public:
  StagingBuffer AllocateStaging(std::size_t bytes) override { return AllocateAligned(bytes); }
  std::shared_ptr<CopyStream> NewStream() override { return std::make_shared<HostStream>(); }
  bool host_accessible() const override { return true; }
};

}  // namespace

std::shared_ptr<Device> MakeHostDevice() { return std::make_shared<HostDevice>(); }

}  // namespace kvshelf
