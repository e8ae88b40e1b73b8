// Where block memory lives. Host memory is implemented here; a GPU fits the same interface.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "kvshelf/memory.h"

namespace kvshelf {

// Copies between block memory and staging, in the order in which they were begun. Each thread has
// one of its own (a GPU stream with its event), but Wait may be called from any thread: whoever
// times a file out must be able to wait for a copy that another, hung, thread has begun.
class CopyStream {
 public:
  virtual ~CopyStream() = default;

  // Begins to gather `segments` into `staging`, or to scatter it. `staging` belongs to the copy
  // until Wait returns. Returns false if the device refused.
  virtual bool BeginOut(std::span<const Segment> segments, std::byte* staging) = 0;
  virtual bool BeginIn(const std::byte* staging, std::span<const Segment> segments) = 0;

  // Waits for all copies begun. Returns false if one of them failed.
  virtual bool Wait() = 0;
};

class Device {
 public:
  virtual ~Device() = default;
  // Staging memory that copies of this device are fast with (pinned, for a GPU). Throws
  // std::bad_alloc.
  virtual StagingBuffer AllocateStaging(std::size_t bytes) = 0;
  virtual std::shared_ptr<CopyStream> NewStream() = 0;
  // Whether block memory may be handed to system calls and read by the processor.
  virtual bool host_accessible() const = 0;
};

// Block memory in ordinary host memory; copies are done when Begin... returns.
std::shared_ptr<Device> MakeHostDevice();

}  // namespace kvshelf
