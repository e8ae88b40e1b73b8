// Staging memory of write-behind stores.
#pragma once

#include <memory>
#include <vector>

#include "engine_lock.h"
#include "kvshelf/device.h"

namespace kvshelf {

// At most so many buffers of one size, made when they are first needed and kept. The engine's mutex
// guards it; memory is made without the mutex.
class StagingPool {
 public:
  // `freed` is notified when a buffer may be taken. Makes `made_now` buffers at once.
  StagingPool(std::shared_ptr<Device> device, std::size_t buffer_bytes, std::size_t buffers_max,
              std::size_t made_now, Condition& freed);

  bool available() const ENGINE_LOCKED;
  // Bytes of the buffers that were taken and not returned.
  std::uint64_t used_bytes() const ENGINE_LOCKED;
  // An empty buffer if there is none, or no memory for it. May let go of the mutex.
  StagingBuffer Take(EngineLock& lock ENGINE_LOCKED);
  void Return(StagingBuffer buffer) ENGINE_LOCKED;

 private:
  const std::shared_ptr<Device> device_;
  const std::size_t buffer_bytes_;
  std::vector<StagingBuffer> free_ ENGINE_GUARDED;
  std::size_t made_ ENGINE_GUARDED;
  std::size_t buffers_max_ ENGINE_GUARDED;
  Condition& freed_;
};

}  // namespace kvshelf
