#include "worker_loops.h"

namespace kvshelf {
namespace {

// A job whose bytes are read does not wait for another's storage, but for this: copies of a part
// take as long where all threads copy, and most reads are over by then.
constexpr auto kCopyTime = std::chrono::milliseconds(5);

bool IsOfAnotherJob(const LoadPart& part, const Transfer& file) {
  return part.file != nullptr && part.file->job != file.job;
}

}  // namespace

void WorkerLoops::Run(Worker& worker) {
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
  const EngineLock lock(parts_.mutex);
  parts_.workers.NoteExit(worker);
}

void WorkerLoops::IoLoop(Worker& worker, ThreadContext& context) {
  const EngineConfig& config = parts_.basis.config;
  const bool stores_too = worker.role == Role::kIo;
  Condition& work = stores_too ? parts_.wake.io : parts_.wake.load;
  LoadPart part;
  EngineLock lock(parts_.mutex);
  do {
    if (parts_.loads.empty()) loads_.FinishCopying(lock, worker);
    work.wait(lock, [&]() ENGINE_LOCKED {
      return parts_.stopping || !parts_.loads.empty() || (stores_too && parts_.stores.HasWork());
    });
    if (loads_.Pop(part)) {
      parts_.jobs.LeaveQueue(*part.file->job, part.file->index);
      if (IsOfAnotherJob(worker.copying, *part.file)) {
        worker.copying_until = Clock::now() + kCopyTime;
        parts_.deadlines.Arm(worker.copying_until);
      }
      const auto deadline =
          part.file->job->submitted + ToDuration(config.load_timeout_seconds) - Clock::now();
      context.Step();
      worker.loading = part.file;
      parts_.workers.BeginCall(worker, deadline);
      parts_.deadlines.Arm(parts_.workers.HungAt(worker));
      loads_.Load(lock, std::move(part), worker);
    } else if (worker.copying.file != nullptr) {  // what was queued had been given up
      loads_.FinishCopying(lock, worker);
    } else if (auto leftover = stores_too ? parts_.stores.PopLeftover() : nullptr) {
      parts_.workers.BeginCall(worker, ToDuration(config.store_timeout_seconds));
      lock.unlock();
      leftover.reset();
      lock.lock();
    } else if (const std::shared_ptr<Transfer> store =
                   stores_too ? parts_.stores.PopToWrite() : nullptr) {
      parts_.workers.BeginCall(worker, ToDuration(config.store_timeout_seconds));
      if (config.write_behind) {
        stores_.WriteBehind(lock, *store, context);
      } else {
        stores_.StoreThrough(lock, store, context);
      }
    } else if (parts_.stopping) {
      return;
    }
  } while (parts_.workers.EndCall(worker));
}

void WorkerLoops::CopierLoop(ThreadContext& context) {
  EngineLock lock(parts_.mutex);
  for (;;) {
    parts_.wake.copy.wait(
        lock, [&]() ENGINE_LOCKED { return parts_.stopping || parts_.stores.CanCopy(); });
    if (parts_.stopping) return;  // nothing is left to copy: Close settled all
    const std::shared_ptr<Transfer> file = parts_.stores.PopToCopy();
    if (file == nullptr) continue;
    // First: what is queued may be cancelled without its gate.
    parts_.jobs.LeaveQueue(*file->job, file->index);
    StagingBuffer buffer = parts_.staging.Take(lock);
    if (buffer) {
      stores_.TakeBytes(lock, file, std::move(buffer), context);
    } else {  // out of memory; it is in no queue any more, so nobody else would say so
      parts_.jobs.Settle(*file, {FileStatus::kDropped, 0});
    }
  }
}

void WorkerLoops::MetaLoop(Worker& worker) {
  EngineLock lock(parts_.mutex);
  do {
    while (!parts_.stopping && !parts_.lookups.HasLookups() && !parts_.lookups.MayTouch()) {
      parts_.lookups.Wait(lock);
    }
    if (parts_.stopping) return;
    parts_.workers.BeginCall(worker, ToDuration(parts_.basis.config.lookup_timeout_seconds));
    if (parts_.lookups.HasLookups()) {
      lookups_.Answer(lock, parts_.lookups.PopRun());
    } else {
      lookups_.Touch(lock, worker);
    }
  } while (parts_.workers.EndCall(worker));
}

}  // namespace kvshelf
