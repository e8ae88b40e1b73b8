// Loads: queued in parts, read by I/O threads.
#pragma once

#include "engine_parts.h"

namespace kvshelf {

class LoadWork {
 public:
  explicit LoadWork(EngineParts& parts) : parts_(parts) {}

  void Enqueue(const std::shared_ptr<Job>& job) ENGINE_LOCKED;
  // False: there is none, or what waited was given up.
  bool Pop(LoadPart& part) ENGINE_LOCKED;
  // Reads `part`, and ends the copies of the part before.
  void Load(EngineLock& lock ENGINE_LOCKED, LoadPart part, Worker& worker);
  // Ends a part whose last copies are under way, if there is one.
  void FinishCopying(EngineLock& lock ENGINE_LOCKED, Worker& worker);

 private:
  void EnqueueParts(const std::shared_ptr<Transfer>& file) ENGINE_LOCKED;
  void EndPart(Transfer& file, FileResult result, bool removed) KVSHELF_EXCLUDES(engine_mutex);

  EngineParts& parts_;
};

}  // namespace kvshelf
