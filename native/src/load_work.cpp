#include "load_work.h"

#include <algorithm>
#include <cerrno>

#include "batch.h"

namespace kvshelf {

void Engine::SubmitLoad(JobId id, const Batch& batch) {
  const std::shared_ptr<Job> job = MakeTransferJob(parts_->basis, JobKind::kLoad, id, batch);
  const EngineLock lock(parts_->mutex);
  parts_->Add(job);
  LoadWork(*parts_).Enqueue(job);
}

// In parts of two pieces, so that all threads share the work of one request, and of one file. A
// file may have been stored in pieces of another size: ChunkReader says what a part is then.
void LoadWork::EnqueueParts(const std::shared_ptr<Transfer>& file) {
  const ChunkRequest& request = file->request;
  const std::uint64_t payload = request.payload_bytes();
  const std::uint64_t block_bytes = request.memory->block_bytes();
  const std::uint64_t part_bytes =
      2ull *
      PieceBytesFor(block_bytes, static_cast<std::uint32_t>(parts_.basis.config.piece_bytes));
  std::uint64_t begin = 0;
  // The first part ends where a piece of the file does.
  std::uint64_t end = part_bytes - request.first_block * block_bytes % part_bytes;
  while (begin < payload) {
    end = std::min(end, payload);
    parts_.loads.Push({file, begin, end});
    ++file->parts_left;
    begin = end;
    end += part_bytes;
  }
  KVSHELF_DCHECK(begin == payload && file->parts_left > 0);
}

void LoadWork::Enqueue(const std::shared_ptr<Job>& job) {
  const EngineConfig& config = parts_.basis.config;
  parts_.loads.DropFinished();
  for (std::size_t i = 0; i < job->size(); ++i) {
    if (++parts_.jobs.queued(job->kind) > config.queue_files) {
      parts_.jobs.Settle(*job, i, FileResult::IoError(EAGAIN), 0);
    } else if (!parts_.workers.AnybodyLoads()) {
      parts_.jobs.Settle(*job, i, {FileStatus::kTimedOut, 0}, 0);
    } else {
      EnqueueParts(Ref(job, i));
    }
  }
  parts_.deadlines.Add(DeadlineKind::kLoad,
                       {job->submitted + ToDuration(config.load_timeout_seconds), job});
  if (parts_.loads.size() == 1) {
    parts_.wake.io.notify_one();
    parts_.wake.load.notify_one();
  } else {
    parts_.wake.io.notify_all();
    parts_.wake.load.notify_all();
  }
}

bool LoadWork::Pop(LoadPart& part) {
  while (!parts_.loads.empty()) {
    part = parts_.loads.Pop();
    if (!IsGivenUp(*part.file)) return true;
  }
  part.file.reset();
  return false;
}

// Reads `part`. Its last copies may still be under way afterwards: it is then in worker.copying,
// and ends when the thread has read its next part, whose pieces needed the same buffers, or there
// is none. If that part is another job's and takes long, the supervisor ends it.
void LoadWork::Load(EngineLock& lock, LoadPart part, Worker& worker) {
  lock.unlock();
  Transfer& file = *part.file;
  ThreadContext& context = *worker.context;
  const ChunkIdentity identity = parts_.basis.IdentityOf(file);
  FileResult result = FileResult::IoError(EIO);
  bool removed = false;
  if (AwaitEvent(file, context)) {
    ChunkReader reader(parts_.basis.root, parts_.basis.io_options, identity, file.request, context);
    result = reader.LoadPart(file.gate, part.begin, part.end, &removed);
  } else if (!file.gate.Revoke()) {
    result = {FileStatus::kCancelled, 0};
  }
  lock.lock();
  worker.loading.reset();
  FinishCopying(lock, worker);
  KVSHELF_DCHECK(worker.copying.file == nullptr);
  if (result.ok() && !parts_.basis.device->host_accessible()) {
    worker.part_copies = context.stream->begun();
    worker.copying = std::move(part);
    return;
  }
  lock.unlock();
  EndPart(file, result, removed);
  lock.lock();
}

// By its thread, or by the supervisor if that takes long in its next call: whoever takes the part.
void LoadWork::FinishCopying(EngineLock& lock, Worker& worker) {
  if (worker.copying.file == nullptr) return;
  const LoadPart part = std::exchange(worker.copying, {});
  const std::uint64_t copies = worker.part_copies;
  worker.copying_until = kNever;
  lock.unlock();
  FileResult result;
  if (!worker.context->stream->WaitFor(copies)) {
    result =
        part.file->gate.Revoke() ? FileResult::IoError(EIO) : FileResult{FileStatus::kCancelled, 0};
  }
  EndPart(*part.file, result, false);
  lock.lock();
}

// The file is done with its last part, or with the first that fails, which has revoked the gate: so
// the copies of the others have ended. kCancelled: whoever has done so says what became of it.
void LoadWork::EndPart(Transfer& file, FileResult result, bool removed) {
  const EngineLock lock(parts_.mutex);
  if (removed) ++parts_.removed_bad;
  if (result.status == FileStatus::kCancelled) return;
  KVSHELF_DCHECK(file.parts_left > 0);
  if (!result.ok()) {
    parts_.jobs.Settle(file, result);
  } else if (--file.parts_left == 0 && !IsGivenUp(file)) {
    parts_.jobs.Settle(file, result, file.request.payload_bytes());
  }
}

}  // namespace kvshelf
