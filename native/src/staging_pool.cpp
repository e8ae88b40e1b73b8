#include "staging_pool.h"

#include <algorithm>
#include <new>

namespace kvshelf {

StagingPool::StagingPool(std::shared_ptr<Device> device, std::size_t buffer_bytes,
                         std::size_t buffers_max, std::size_t made_now, Condition& freed)
    : device_(std::move(device)),
      buffer_bytes_(buffer_bytes),
      made_(std::min(made_now, buffers_max)),
      buffers_max_(buffers_max),
      freed_(freed) {
  while (free_.size() < made_) free_.push_back(device_->AllocateStaging(buffer_bytes_));
}

bool StagingPool::available() const { return !free_.empty() || made_ < buffers_max_; }

std::uint64_t StagingPool::used_bytes() const {
  KVSHELF_DCHECK(free_.size() <= made_);
  return (made_ - free_.size()) * buffer_bytes_;
}

// The buffer used last is taken first: it may still be in cache, and memory that was never needed
// is never touched. Making one, pinned for a GPU, takes milliseconds, in which poll() and
// submissions must not wait for the mutex; so whatever the caller knew may have changed afterwards.
StagingBuffer StagingPool::Take(EngineLock& lock) {
  KVSHELF_DCHECK(EngineLock::IsHeld());
  KVSHELF_DCHECK(made_ <= buffers_max_);
  if (!free_.empty()) {
    StagingBuffer buffer = std::move(free_.back());
    free_.pop_back();
    return buffer;
  }
  if (!available()) return {};
  ++made_;  // before it is: others must not make more than there may be
  lock.unlock();
  StagingBuffer buffer;
  try {
    buffer = device_->AllocateStaging(buffer_bytes_);
  } catch (const std::bad_alloc&) {
    // An empty one says so.
  }
  lock.lock();
  if (!buffer) {
    // Go on with what there is; with none, each store tries again, and is dropped.
    buffers_max_ = std::max<std::size_t>(1, --made_);
    freed_.notify_all();  // for whom there was no buffer while this one counted
  }
  return buffer;
}

void StagingPool::Return(StagingBuffer buffer) {
  if (!buffer) return;
  KVSHELF_DCHECK(EngineLock::IsHeld());
  KVSHELF_DCHECK(buffer.size() == buffer_bytes_);
  KVSHELF_DCHECK(free_.size() < made_);
  free_.push_back(std::move(buffer));
  freed_.notify_all();
}

}  // namespace kvshelf
