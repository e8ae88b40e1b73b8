// The engine's threads: who they are, which of them hang, and who replaces those.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "deadlines.h"
#include "engine_basis.h"
#include "wakeups.h"

namespace kvshelf {

enum class Role : std::uint8_t { kIo, kLoadOnly, kMeta, kCopier };
inline constexpr std::size_t kRoles = 4;

struct Worker {
  Role role = Role::kIo;
  std::shared_ptr<ThreadContext> context;        // of its own; null for lookup threads
  std::thread thread;                            // whoever removes or detaches it ends it
  TimePoint busy_until ENGINE_GUARDED = kNever;  // when the call it makes counts as hung
  bool abandoned ENGINE_GUARDED = false;         // it hung; another does its work
  bool touching ENGINE_GUARDED = false;
  bool exited ENGINE_GUARDED = false;
  std::shared_ptr<Transfer> loading ENGINE_GUARDED;  // the load that it reads a part of
  // A part that is read, whose last copies are under way; with copy `part_copies` of the context's
  // stream it ends. From `copying_until` on somebody else ends it, if the thread still reads.
  LoadPart copying ENGINE_GUARDED;
  std::uint64_t part_copies ENGINE_GUARDED = 0;
  TimePoint copying_until ENGINE_GUARDED = kNever;
};
using WorkerRef = std::shared_ptr<Worker>;

// The engine's mutex guards it.
class Workers {
 public:
  using Body = std::function<void(Worker&)>;

  Workers(const EngineBasis& basis, Deadlines& deadlines, Wakeups& wake);

  // Starts all threads, which run `body`. Throws std::system_error, std::bad_alloc or the like.
  void Start(const Body& body) ENGINE_LOCKED;
  // What a new thread of that role needs; null if that is nothing. Throws likewise. Takes
  // milliseconds on a GPU: call it without the mutex where somebody waits for that.
  std::shared_ptr<ThreadContext> MakeContext(Role role) const;
  void Spawn(Role role, std::shared_ptr<ThreadContext> context, Body body) ENGINE_LOCKED;

  // Around what may hang. EndCall is false if the thread must end: another does its work.
  void BeginCall(Worker& worker, Clock::duration timeout) ENGINE_LOCKED;
  bool EndCall(Worker& worker) ENGINE_LOCKED;
  void NoteExit(Worker& worker) ENGINE_LOCKED;  // the last thing that a thread does

  // When the call that a thread makes counts as hung, and the next time that the supervisor has to
  // look at one.
  TimePoint HungAt(const Worker& worker) const ENGINE_LOCKED;
  TimePoint NextDeadline() const ENGINE_LOCKED;
  bool IsHung(const Worker& worker, TimePoint now) const ENGINE_LOCKED {
    return !worker.abandoned && HungAt(worker) <= now;
  }
  // For threads that hang: as many as may be replaced.
  std::vector<Role> RolesToReplace(TimePoint now) const ENGINE_LOCKED;
  void Abandon(Worker& worker) ENGINE_LOCKED;
  // Starts a thread in place of an abandoned one, or none if there is none to be had.
  void Replace(Role role, std::shared_ptr<ThreadContext> context, Body body) ENGINE_LOCKED;

  // Whether a thread is left that loads. If not, all hang and no more are made.
  bool AnybodyLoads() const ENGINE_LOCKED;
  bool NothingReadSince(TimePoint since) const ENGINE_LOCKED;
  std::uint64_t hung() const ENGINE_LOCKED { return hung_; }

  const std::vector<WorkerRef>& all() const ENGINE_LOCKED { return workers_; }
  bool AllExited() const ENGINE_LOCKED;
  // Joins threads that have ended, which takes no time, and forgets them.
  void Reap(EngineLock& lock ENGINE_LOCKED);
  // Lets those that are left go, which hang in the kernel and co-own their engine.
  void Detach() ENGINE_LOCKED;

 private:
  const EngineBasis& basis_;
  const std::array<int, kRoles> nominal_;  // threads of each role
  Deadlines& deadlines_;
  Wakeups& wake_;
  std::vector<WorkerRef> workers_ ENGINE_GUARDED;
  std::array<int, kRoles> live_ ENGINE_GUARDED{};  // threads that are neither abandoned nor gone
  std::array<int, kRoles> made_ ENGINE_GUARDED{};
  int replaced_ ENGINE_GUARDED = 0;  // abandoned threads whose replacement is alive
  std::uint64_t hung_ ENGINE_GUARDED = 0;
};

}  // namespace kvshelf
