// The thread that watches deadlines and hung threads.
#pragma once

#include <memory>
#include <vector>

#include "engine_parts.h"
#include "load_work.h"

namespace kvshelf {

class Supervisor {
 public:
  // `body`: of threads that replace others.
  Supervisor(EngineParts& parts, Workers::Body body)
      : parts_(parts), loads_(parts), body_(std::move(body)) {}

  // Until the engine stops.
  void Run(EngineLock& lock ENGINE_LOCKED);

 private:
  // What a thread that replaces another needs: made before it is known under the lock who hangs.
  struct Spare {
    Role role;
    std::shared_ptr<ThreadContext> context;
  };

  void Expire(EngineLock& lock ENGINE_LOCKED, DeadlineKind kind, TimePoint now);
  void EndCopies(EngineLock& lock ENGINE_LOCKED, TimePoint now);
  void AbandonHung(EngineLock& lock ENGINE_LOCKED, TimePoint now);
  std::vector<Spare> MakeSpares(EngineLock& lock ENGINE_LOCKED, TimePoint now);
  void GiveUpLoadsBefore(EngineLock& lock ENGINE_LOCKED, TimePoint submitted);

  EngineParts& parts_;
  LoadWork loads_;
  const Workers::Body body_;
};

}  // namespace kvshelf
