// Where block memory lives. Host memory is implemented here; a GPU fits the same interface.
#pragma once

#include <cstddef>
#include <cstdint>
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

  // Makes copies that are begun from now on wait for an event of Device::RecordEvent; null is none.
  virtual bool After(const void* event) = 0;

  // Copies begun so far, and a wait for the first `copies` of them: their staging is free again.
  // False if one of them failed.
  virtual std::uint64_t begun() const = 0;
  virtual bool WaitFor(std::uint64_t copies) = 0;

  // Waits for all copies begun. Returns false if one of them failed.
  bool Wait() { return WaitFor(begun()); }
};

class Device {
 public:
  virtual ~Device() = default;
  // Staging memory that copies of this device are fast with (pinned, for a GPU). Throws
  // std::bad_alloc.
  virtual StagingBuffer AllocateStaging(std::size_t bytes) = 0;
  virtual std::shared_ptr<CopyStream> NewStream() = 0;
  // An event after all work that the caller has queued on a stream of its own (a GPU's stream
  // handle; host memory has none, and returns null). Throws std::runtime_error.
  virtual std::shared_ptr<void> RecordEvent(std::uintptr_t stream) = 0;
  // Whether block memory may be handed to system calls and read by the processor.
  virtual bool host_accessible() const = 0;
};

// Block memory in ordinary host memory; copies are done when Begin... returns.
std::shared_ptr<Device> MakeHostDevice();

}  // namespace kvshelf
