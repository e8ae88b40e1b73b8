#include "workers.h"

#include <pthread.h>

#include <algorithm>
#include <iterator>

namespace kvshelf {
namespace {

// A thread counts as hung if its call outlasts the deadline of its file by this much: a thread
// that reads in small steps on storage that answers comes back well within it.
constexpr auto kHungGrace = std::chrono::milliseconds(100);

constexpr std::array<const char*, kRoles> kRoleNames = {"kvs-io-", "kvs-load-", "kvs-meta-",
                                                        "kvs-copy-"};
constexpr std::size_t kThreadNameMax = 15;  // of the kernel

std::size_t IndexOf(Role role) { return static_cast<std::size_t>(role); }

// Taking bytes is memory copying; a quarter of the I/O threads keeps up with them.
int CopierThreads(const EngineConfig& config) { return std::clamp(config.io_threads / 4, 1, 4); }

// Threads of each role. Without block memory there are only lookups and touches.
std::array<int, kRoles> NominalThreads(const EngineBasis& basis) {
  const EngineConfig& config = basis.config;
  std::array<int, kRoles> threads{};
  const auto of = [&](Role role) -> int& { return threads[IndexOf(role)]; };
  of(Role::kMeta) = config.lookup_threads;
  if (basis.groups.empty()) return threads;
  of(Role::kLoadOnly) = std::clamp(config.load_only_threads, 0, config.io_threads - 1);
  of(Role::kIo) = config.io_threads - of(Role::kLoadOnly);
  if (config.write_behind) of(Role::kCopier) = CopierThreads(config);
  return threads;
}

}  // namespace

Workers::Workers(const EngineBasis& basis, Deadlines& deadlines, Wakeups& wake)
    : basis_(basis), nominal_(NominalThreads(basis)), deadlines_(deadlines), wake_(wake) {}

void Workers::Start(const Body& body) {
  for (const Role role : {Role::kIo, Role::kLoadOnly, Role::kMeta, Role::kCopier}) {
    for (int i = 0; i < nominal_[IndexOf(role)]; ++i) Spawn(role, MakeContext(role), body);
  }
}

// Allocated here, where a failure can be reported; the thread co-owns it, however long it hangs.
// Null for threads that need none.
std::shared_ptr<ThreadContext> Workers::MakeContext(Role role) const {
  switch (role) {
    case Role::kIo:
    case Role::kLoadOnly:
      return MakeThreadContext(*basis_.device, basis_.io_options.step_bytes,
                               basis_.config.ring_bytes);
    case Role::kCopier: {
      auto context = std::make_shared<ThreadContext>();
      context->stream = basis_.device->NewStream();
      return context;
    }
    case Role::kMeta:
      break;
  }
  return nullptr;
}

void Workers::Spawn(Role role, std::shared_ptr<ThreadContext> context, Body body) {
  const std::size_t index = IndexOf(role);
  auto worker = std::make_shared<Worker>();
  worker->role = role;
  worker->context = std::move(context);
  std::string name = kRoleNames[index] + std::to_string(made_[index]++);
  name.resize(std::min(name.size(), kThreadNameMax));
  workers_.reserve(workers_.size() + 1);
  worker->thread = std::thread([worker, name = std::move(name), body = std::move(body)] {
    ::pthread_setname_np(::pthread_self(), name.c_str());
    body(*worker);
  });
  workers_.push_back(worker);
  ++live_[index];
}

void Workers::BeginCall(Worker& worker, Clock::duration timeout) {
  worker.busy_until = Clock::now() + timeout + kHungGrace;
  deadlines_.Arm(worker.busy_until);
}

// One that was given up goes on only if it was not replaced.
bool Workers::EndCall(Worker& worker) {
  worker.busy_until = kNever;
  if (!worker.abandoned) return true;
  KVSHELF_DCHECK(hung_ > 0);
  --hung_;
  const std::size_t index = IndexOf(worker.role);
  if (live_[index] >= nominal_[index]) {
    KVSHELF_DCHECK(replaced_ > 0);
    --replaced_;
    return false;
  }
  ++live_[index];
  worker.abandoned = false;
  return true;
}

void Workers::NoteExit(Worker& worker) {
  KVSHELF_DCHECK(!worker.exited);
  if (!worker.abandoned) --live_[IndexOf(worker.role)];
  KVSHELF_DCHECK(live_[IndexOf(worker.role)] >= 0);
  worker.exited = true;
  wake_.supervisor.notify_one();
  wake_.changed.notify_all();
}

// Past its deadline, or, of a load, when nothing of it has come for load_stall_seconds.
TimePoint Workers::HungAt(const Worker& worker) const {
  if (worker.loading == nullptr) return worker.busy_until;
  const TimePoint step(Clock::duration(worker.context->last_step.load()));
  if (step == kNever) return worker.busy_until;
  return std::min(worker.busy_until, step + ToDuration(basis_.config.load_stall_seconds));
}

TimePoint Workers::NextDeadline() const {
  TimePoint next = kNever;
  for (const WorkerRef& worker : workers_) {
    next = std::min(next, worker->copying_until);
    if (!worker->abandoned) next = std::min(next, HungAt(*worker));
  }
  return next;
}

std::vector<Role> Workers::RolesToReplace(TimePoint now) const {
  std::vector<Role> roles;
  for (const WorkerRef& worker : workers_) {
    if (!IsHung(*worker, now)) continue;
    if (replaced_ + static_cast<int>(roles.size()) >= basis_.config.replacement_threads) break;
    roles.push_back(worker->role);
  }
  return roles;
}

void Workers::Abandon(Worker& worker) {
  KVSHELF_DCHECK(!worker.abandoned);
  worker.abandoned = true;
  ++hung_;
  --live_[IndexOf(worker.role)];
}

void Workers::Replace(Role role, std::shared_ptr<ThreadContext> context, Body body) {
  try {
    Spawn(role, std::move(context), std::move(body));
    ++replaced_;
  } catch (const std::exception&) {
    // No thread to be had: go on with fewer until the hung one comes back.
  }
}

bool Workers::AnybodyLoads() const {
  return live_[IndexOf(Role::kIo)] + live_[IndexOf(Role::kLoadOnly)] > 0;
}

bool Workers::NothingReadSince(TimePoint since) const {
  const Clock::rep limit = since.time_since_epoch().count();
  return std::none_of(workers_.begin(), workers_.end(), [&](const WorkerRef& worker) {
    return worker->context != nullptr && worker->context->last_read.load() > limit;
  });
}

bool Workers::AllExited() const {
  return std::all_of(workers_.begin(), workers_.end(),
                     [](const WorkerRef& worker) ENGINE_LOCKED { return worker->exited; });
}

void Workers::Reap(EngineLock& lock) {
  const auto gone =
      std::stable_partition(workers_.begin(), workers_.end(),
                            [](const WorkerRef& worker) ENGINE_LOCKED { return !worker->exited; });
  std::vector<WorkerRef> ended(std::make_move_iterator(gone),
                               std::make_move_iterator(workers_.end()));
  workers_.erase(gone, workers_.end());
  if (ended.empty()) return;
  lock.unlock();
  for (const WorkerRef& worker : ended) {
    if (worker->thread.joinable()) worker->thread.join();  // else Close has detached it
  }
  ended.clear();  // unpins their memory: not under the lock
  lock.lock();
}

void Workers::Detach() {
  for (const WorkerRef& worker : workers_) {
    if (worker->thread.joinable()) worker->thread.detach();
  }
}

}  // namespace kvshelf
