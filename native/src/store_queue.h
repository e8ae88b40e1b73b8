// Stores that wait for a thread, and what is staged of them.
#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "job.h"
#include "staging_pool.h"
#include "wakeups.h"

namespace kvshelf {

// The engine's mutex guards it.
class StoreQueue {
 public:
  StoreQueue(bool write_behind, StagingPool& staging, Wakeups& wake)
      : write_behind_(write_behind), staging_(staging), wake_(wake) {}

  // A new store: its bytes are to be taken, or, without write-behind, it is to be written.
  void Add(std::shared_ptr<Transfer> file) ENGINE_LOCKED;
  void DropSettled() ENGINE_LOCKED;  // from the front of what Add adds to
  // After Add.
  void WakeThreads() ENGINE_LOCKED;

  // For copiers. Null: what waited was given up.
  bool CanCopy() const ENGINE_LOCKED { return !to_copy_.empty() && staging_.available(); }
  std::shared_ptr<Transfer> PopToCopy() ENGINE_LOCKED { return PopUnsettled(to_copy_); }
  // Hands bytes of a file that were taken on to an I/O thread.
  void AddStaged(const std::shared_ptr<Transfer>& file, StagedPart part) ENGINE_LOCKED;

  // For I/O threads. Null: there is none, or what waited was given up.
  bool HasWork() const ENGINE_LOCKED { return !to_write_.empty() || !leftovers_.empty(); }
  std::shared_ptr<Transfer> PopToWrite() ENGINE_LOCKED { return PopUnsettled(to_write_); }
  std::unique_ptr<ChunkWriter> PopLeftover() ENGINE_LOCKED;

  // Frees what a settled write-behind file still has in staging.
  void DropStaged(Transfer& file) ENGINE_LOCKED;
  // Forgets temp files that no thread was left to remove.
  void LeakLeftovers() ENGINE_LOCKED;

 private:
  using Queue = std::deque<std::shared_ptr<Transfer>>;

  static std::shared_ptr<Transfer> PopUnsettled(Queue& queue) ENGINE_LOCKED;

  const bool write_behind_;
  StagingPool& staging_;
  Wakeups& wake_;
  Queue to_write_ ENGINE_GUARDED;  // whole files, or those with staged parts
  Queue to_copy_ ENGINE_GUARDED;   // write-behind: bytes to be taken
  // Of files given up; I/O threads end them.
  std::vector<std::unique_ptr<ChunkWriter>> leftovers_ ENGINE_GUARDED;
};

}  // namespace kvshelf
