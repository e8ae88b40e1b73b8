// What an engine's threads do, by their role, until it stops or another does their work.
#pragma once

#include "engine_parts.h"
#include "load_work.h"
#include "lookup_work.h"
#include "store_work.h"

namespace kvshelf {

class WorkerLoops {
 public:
  explicit WorkerLoops(EngineParts& parts)
      : parts_(parts), loads_(parts), stores_(parts), lookups_(parts) {}

  void Run(Worker& worker) KVSHELF_EXCLUDES(engine_mutex);

 private:
  void IoLoop(Worker& worker, ThreadContext& context);
  void CopierLoop(ThreadContext& context);
  void MetaLoop(Worker& worker);

  EngineParts& parts_;
  LoadWork loads_;
  StoreWork stores_;
  LookupWork lookups_;
};

}  // namespace kvshelf
