// The engine's construction and the loops of its threads.
#include <algorithm>
#include <cerrno>
#include <stdexcept>
#include <system_error>

#include "engine_core.h"

namespace kvshelf {
namespace {

// O_DIRECT has no read-ahead, so its steps must be long enough to keep a device busy.
constexpr std::uint64_t kDirectStepBytes = 1 << 20;

// Buffers of write-behind stores that a GPU's engine pins at its start: 1 GiB of 4 MiB pieces.
// Pinning takes milliseconds a buffer: not while a store waits. What a generous setting allows
// beyond that is pinned when it is needed.
std::size_t BuffersAtStart(const EngineConfig& config, const std::vector<GroupMemory>& groups,
                           const Device& device) {
  constexpr std::size_t kPinnedAtStart = 256;
  const bool pins = !device.host_accessible() && config.write_behind && !groups.empty();
  return pins ? kPinnedAtStart : 0;
}

// Taking bytes is memory copying; a quarter of the I/O threads keeps up with them.
int CopierThreads(const EngineConfig& config) { return std::clamp(config.io_threads / 4, 1, 4); }

// Threads of each role. Without block memory there are only lookups and touches.
std::array<int, kRoles> NominalThreads(const EngineConfig& config, bool has_memory) {
  std::array<int, kRoles> threads{};
  const auto of = [&](Role role) -> int& { return threads[static_cast<std::size_t>(role)]; };
  of(Role::kMeta) = config.lookup_threads;
  if (!has_memory) return threads;
  of(Role::kLoadOnly) = std::clamp(config.load_only_threads, 0, config.io_threads - 1);
  of(Role::kIo) = config.io_threads - of(Role::kLoadOnly);
  if (config.write_behind) of(Role::kCopier) = CopierThreads(config);
  return threads;
}

// A job whose bytes are read does not wait for another's storage, but for this: copies of a part
// take as long where all threads copy, and most reads are over by then.
constexpr auto kCopyTime = std::chrono::milliseconds(5);

bool IsOfAnotherJob(const LoadPart& part, const Transfer& file) {
  return part.file != nullptr && part.file->job != file.job;
}

ChunkIoOptions IoOptions(const EngineConfig& config) {
  ChunkIoOptions options;
  options.step_bytes = config.step_bytes;
  options.piece_bytes = static_cast<std::uint32_t>(config.piece_bytes);
  options.verify = config.verify;
  options.remove_bad = config.remove_bad;
  options.durability = config.durability;
  options.file_mode = config.file_mode;
  return options;
}

const EngineConfig& Checked(const EngineConfig& config) {
  CheckConfig(config);
  return config;
}

}  // namespace

void CheckConfig(const EngineConfig& config) {
  auto demand = [](bool holds, const char* text) {
    if (!holds) throw std::invalid_argument(text);
  };
  auto whole_pages = [](std::uint64_t bytes, std::uint64_t max) {
    return bytes >= kPageBytes && bytes % kPageBytes == 0 && bytes <= max;
  };
  demand(config.io_threads >= 1 && config.io_threads <= 1024, "io_threads: 1 to 1024");
  demand(config.load_only_threads >= 0, "load_only_threads: at least 0");
  demand(config.lookup_threads >= 1 && config.lookup_threads <= 1024, "lookup_threads: 1 to 1024");
  demand(whole_pages(config.piece_bytes, 1u << 30),
         "piece_bytes: a multiple of 4096, at most 1 GiB");
  demand(whole_pages(config.ring_bytes, 1u << 30), "ring_bytes: a multiple of 4096, at most 1 GiB");
  demand(whole_pages(config.step_bytes, 1u << 30), "step_bytes: a multiple of 4096, at most 1 GiB");
  demand(config.replacement_threads >= 0 && config.replacement_threads <= 1024,
         "replacement_threads: 0 to 1024");
}

EngineCore::EngineCore(EngineSetup setup)
    : config_(Checked(setup.config)),
      io_options_(IoOptions(setup.config)),
      groups_(std::move(setup.groups)),
      namespace_digest_(setup.namespace_digest),
      rank_(setup.rank),
      auth_key_(setup.auth_key.empty() ? std::nullopt
                                       : std::make_optional<AuthKey>(setup.auth_key)),
      device_(setup.device != nullptr ? std::move(setup.device) : MakeHostDevice()),
      root_(setup.ops != nullptr ? std::move(setup.ops) : MakePosixFileOps(), setup.root,
            setup.temp_prefix.empty() ? OwnTempPrefix() : std::move(setup.temp_prefix),
            setup.config.dir_mode),
      staging_(device_, config_.piece_bytes,
               std::max<std::size_t>(1, config_.write_buffer_bytes / config_.piece_bytes),
               BuffersAtStart(config_, groups_, *device_), wake_.copy),
      stores_(config_.write_behind, staging_, wake_),
      jobs_(config_.write_behind, stores_, wake_),
      lookups_(config_, wake_),
      deadlines_(wake_.supervisor),
      workers_(config_, NominalThreads(config_, !groups_.empty()), deadlines_, wake_) {
  if (config_.direct != Direct::kOff) {
    const int error = root_.ProbeDirect();
    if (error < 0 && config_.direct == Direct::kOn) {
      throw std::system_error(-error, std::generic_category(),
                              setup.root + ": O_DIRECT does not work here");
    }
    io_options_.direct = error >= 0;
  }
  if (io_options_.direct) {
    io_options_.step_bytes = std::max(io_options_.step_bytes, kDirectStepBytes);
  }
  stats_.direct = io_options_.direct;
}

EngineCore::~EngineCore() = default;

void EngineCore::Start() {
  const EngineLock lock(mutex_);
  for (const Role role : {Role::kIo, Role::kLoadOnly, Role::kMeta, Role::kCopier}) {
    for (int i = 0; i < workers_.nominal(role); ++i) {
      workers_.Spawn(role, MakeContext(role), Body());
    }
  }
  supervisor_thread_ = std::thread([core = shared_from_this()] { core->Supervise(); });
}

// Allocated here, where a failure can be reported; the thread co-owns it, however long it hangs.
// Null for threads that need none.
std::shared_ptr<ThreadContext> EngineCore::MakeContext(Role role) const {
  switch (role) {
    case Role::kIo:
    case Role::kLoadOnly:
      return MakeThreadContext(*device_, io_options_.step_bytes, config_.ring_bytes);
    case Role::kCopier: {
      auto context = std::make_shared<ThreadContext>();
      context->stream = device_->NewStream();
      return context;
    }
    case Role::kMeta:
      break;
  }
  return nullptr;
}

Workers::Body EngineCore::Body() {
  return [core = shared_from_this()](Worker& worker) { core->RunWorker(worker); };
}

void EngineCore::RunWorker(Worker& worker) {
  switch (worker.role) {
    case Role::kIo:
    case Role::kLoadOnly:
      IoLoop(worker, *worker.context);
      break;
    case Role::kMeta:
      MetaLoop(worker);
      break;
    case Role::kCopier:
      CopierLoop(*worker.context);
      break;
  }
  const EngineLock lock(mutex_);
  workers_.NoteExit(worker);
}

void EngineCore::IoLoop(Worker& worker, ThreadContext& context) {
  const bool stores_too = worker.role == Role::kIo;
  Condition& work = stores_too ? wake_.io : wake_.load;
  LoadPart part;
  EngineLock lock(mutex_);
  do {
    if (loads_.empty()) FinishCopying(lock, worker);
    work.wait(lock, [&]() ENGINE_LOCKED {
      return stopping_ || !loads_.empty() || (stores_too && stores_.HasWork());
    });
    if (PopLoad(part)) {
      jobs_.LeaveQueue(*part.file->job, part.file->index);
      if (IsOfAnotherJob(worker.copying, *part.file)) {
        worker.copying_until = Clock::now() + kCopyTime;
        deadlines_.Arm(worker.copying_until);
      }
      const auto deadline =
          part.file->job->submitted + ToDuration(config_.load_timeout_seconds) - Clock::now();
      context.Step();
      worker.loading = part.file;
      workers_.BeginCall(worker, deadline);
      deadlines_.Arm(workers_.HungAt(worker));
      Load(lock, std::move(part), worker);
    } else if (worker.copying.file != nullptr) {  // what was queued had been given up
      FinishCopying(lock, worker);
    } else if (auto leftover = stores_too ? stores_.PopLeftover() : nullptr) {
      workers_.BeginCall(worker, ToDuration(config_.store_timeout_seconds));
      lock.unlock();
      leftover.reset();
      lock.lock();
    } else if (const TransferRef store = stores_too ? stores_.PopToWrite() : nullptr) {
      workers_.BeginCall(worker, ToDuration(config_.store_timeout_seconds));
      if (config_.write_behind) {
        WriteBehind(lock, *store, context);
      } else {
        jobs_.LeaveQueue(*store->job, store->index);
        deadlines_.Add(
            DeadlineKind::kPublish,
            {Clock::now() + ToDuration(config_.store_timeout_seconds), JobOf(store), store->index});
        lock.unlock();
        StoreThrough(*store, context);
        lock.lock();
      }
    } else if (stopping_) {
      return;
    }
  } while (workers_.EndCall(worker));
}

void EngineCore::CopierLoop(ThreadContext& context) {
  EngineLock lock(mutex_);
  for (;;) {
    wake_.copy.wait(lock, [&]() ENGINE_LOCKED { return stopping_ || stores_.CanCopy(); });
    if (stopping_) return;  // nothing is left to copy: Close settled all
    const TransferRef file = stores_.PopToCopy();
    if (file == nullptr) continue;
    jobs_.LeaveQueue(*file->job,
                     file->index);  // first: what is queued may be cancelled without its gate
    StagingBuffer buffer = staging_.Take(lock);
    if (buffer) {
      TakeBytes(lock, file, std::move(buffer), context);
    } else {  // out of memory; it is in no queue any more, so nobody else would say so
      jobs_.Settle(*file, {FileStatus::kDropped, 0});
    }
  }
}

void EngineCore::MetaLoop(Worker& worker) {
  EngineLock lock(mutex_);
  do {
    while (!stopping_ && !lookups_.HasLookups() && !lookups_.MayTouch()) lookups_.Wait(lock);
    if (stopping_) return;
    workers_.BeginCall(worker, ToDuration(config_.lookup_timeout_seconds));
    if (lookups_.HasLookups()) {
      Probe(lock, lookups_.PopRun());
    } else {
      TouchSome(lock, worker);
    }
  } while (workers_.EndCall(worker));
}

}  // namespace kvshelf
