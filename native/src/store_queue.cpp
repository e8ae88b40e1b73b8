#include "store_queue.h"

namespace kvshelf {

void StoreQueue::Add(std::shared_ptr<Transfer> file) {
  (write_behind_ ? to_copy_ : to_write_).push_back(std::move(file));
}

void StoreQueue::DropSettled() {
  Queue& queue = write_behind_ ? to_copy_ : to_write_;
  while (!queue.empty() && IsSettled(*queue.front())) queue.pop_front();
}

void StoreQueue::WakeThreads() { (write_behind_ ? wake_.copy : wake_.io).notify_all(); }

std::shared_ptr<Transfer> StoreQueue::PopUnsettled(Queue& queue) {
  while (!queue.empty()) {
    std::shared_ptr<Transfer> file = std::move(queue.front());
    queue.pop_front();
    file->in_queue = false;
    if (!IsGivenUp(*file)) return file;
  }
  return nullptr;
}

void StoreQueue::AddStaged(const std::shared_ptr<Transfer>& file, StagedPart part) {
  KVSHELF_DCHECK(EngineLock::IsHeld());
  KVSHELF_DCHECK(write_behind_ && !IsSettled(*file));
  KVSHELF_DCHECK(part.bytes > 0 && part.bytes <= part.buffer.size());
  file->ready().push_back(std::move(part));
  if (file->active || file->in_queue) return;
  file->in_queue = true;
  to_write_.push_back(file);
  wake_.io.notify_one();
}

std::unique_ptr<ChunkWriter> StoreQueue::PopLeftover() {
  if (leftovers_.empty()) return nullptr;
  std::unique_ptr<ChunkWriter> leftover = std::move(leftovers_.back());
  leftovers_.pop_back();
  return leftover;
}

// A temp file is left to an I/O thread: removing it is a system call, and the caller may be
// anybody.
void StoreQueue::DropStaged(Transfer& file) {
  KVSHELF_DCHECK(IsSettled(file));
  if (!write_behind_) return;
  while (file.has_ready()) {
    staging_.Return(std::move(file.ready().front().buffer));
    file.ready().pop_front();
  }
  if (file.writer != nullptr && !file.active) {
    leftovers_.push_back(std::move(file.writer));
    wake_.io.notify_one();
  }
  wake_.copy.notify_all();  // a copier may wait for a buffer for this very file
}

void StoreQueue::LeakLeftovers() {
  for (const auto& leftover : leftovers_) leftover->Leak();
  leftovers_.clear();
}

}  // namespace kvshelf
