// The work of I/O threads and copiers on one chunk file.
#include <algorithm>
#include <cerrno>

#include "engine_core.h"

namespace kvshelf {

ChunkIdentity EngineCore::IdentityOf(const Transfer& file) const {
  const GroupMemory& memory = *file.request.memory;
  return {namespace_digest_, file.request.key,     rank_,
          memory.geometry(), memory.block_bytes(), auth_key_ ? &*auth_key_ : nullptr};
}

// Makes the thread's copies come after the work that the caller had queued at submission: the
// kernels that compute the blocks of a store, or that clear those of a load.
bool EngineCore::AwaitEvent(const Transfer& file, ThreadContext& context) {
  return context.stream->After(file.job->after.get());
}

bool EngineCore::PopLoad(LoadPart& part) {
  while (!loads_.empty()) {
    part = loads_.Pop();
    if (!IsGivenUp(*part.file)) return true;
  }
  part.file.reset();
  return false;
}

// Reads `part`. Its last copies may still be under way afterwards: it is then in worker.copying,
// and ends when the thread has read its next part, whose pieces needed the same buffers, or there
// is none. If that part is another job's and takes long, the supervisor ends it.
void EngineCore::Load(EngineLock& lock, LoadPart part, Worker& worker) {
  lock.unlock();
  Transfer& file = *part.file;
  ThreadContext& context = *worker.context;
  const ChunkIdentity identity = IdentityOf(file);
  FileResult result = FileResult::IoError(EIO);
  bool removed = false;
  if (AwaitEvent(file, context)) {
    ChunkReader reader(root_, io_options_, identity, file.request, context);
    result = reader.LoadPart(file.gate, part.begin, part.end, &removed);
  } else if (!file.gate.Revoke()) {
    result = {FileStatus::kCancelled, 0};
  }
  lock.lock();
  worker.loading.reset();
  FinishCopying(lock, worker);
  if (result.ok() && !device_->host_accessible()) {
    worker.part_copies = context.stream->begun();
    worker.copying = std::move(part);
    return;
  }
  lock.unlock();
  EndPart(file, result, removed);
  lock.lock();
}

// By its thread, or by the supervisor if that takes long in its next call: whoever takes the part.
void EngineCore::FinishCopying(EngineLock& lock, Worker& worker) {
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
void EngineCore::EndPart(Transfer& file, FileResult result, bool removed) {
  const EngineLock lock(mutex_);
  if (removed) ++stats_.removed_bad;
  if (result.status == FileStatus::kCancelled) return;
  if (!result.ok()) {
    jobs_.Settle(file, result);
  } else if (--file.parts_left == 0 && !IsGivenUp(file)) {
    jobs_.Settle(file, result, file.request.payload_bytes());
  }
}

// Without write-behind: the whole file at once.
void EngineCore::StoreThrough(Transfer& file, ThreadContext& context) {
  const ChunkIdentity identity = IdentityOf(file);
  FileResult result;
  std::uint64_t bytes = 0;
  bool removed = false;
  {
    ChunkWriter writer(root_, io_options_, identity, file.request);
    if (writer.Begin(&result, context) == ChunkWriter::Start::kReady) {
      result = AwaitEvent(file, context) ? FileResult{} : FileResult::IoError(EIO);
      if (result.ok()) result = WriteFromBlocks(file, writer, context);
      if (result.ok()) result = writer.Publish(file.gate, context);
      if (result.ok()) bytes = file.request.payload_bytes();
    }
    removed = writer.removed_bad();
  }  // a temp file that was not published is gone before anybody hears of the failure
  const EngineLock lock(mutex_);
  if (removed) ++stats_.removed_bad;
  if (!IsGivenUp(file)) jobs_.Settle(file, result, bytes);
}

FileResult EngineCore::WriteFromBlocks(Transfer& file, ChunkWriter& writer,
                                       ThreadContext& context) {
  const std::uint64_t payload = file.request.payload_bytes();
  const bool in_place = device_->host_accessible() && !io_options_.direct;
  while (writer.written_bytes() < payload) {
    if (file.gate.revoked()) return FileResult::IoError(ECANCELED);
    const std::uint64_t begin = writer.written_bytes();
    const std::uint64_t end = AlignedEnd(begin, context.step.size(), payload);
    file.request.memory->Map(file.request.block_ids, begin, end, context.segments);
    FileResult result;
    if (in_place) {
      result = writer.WriteSegments(context.segments, file.gate, context);
    } else {
      const bool copied = file.gate.Copy(context.stream, [&](CopyStream& stream) {
        return stream.BeginOut(context.segments, context.step.data()) && stream.Wait();
      });
      if (!copied) return FileResult::IoError(EIO);
      result = writer.WriteStaged(context.step.data(), end - begin);
    }
    if (!result.ok()) return result;
  }
  return {};
}

// A copier's work: takes a file's bytes into staging, a part at a time as buffers become free, and
// hashes them there: the threads that write have enough to do. No file I/O, so that no storage can
// hold block memory.
void EngineCore::TakeBytes(EngineLock& lock, const TransferRef& file, StagingBuffer buffer,
                           ThreadContext& context) {
  const std::uint64_t payload = file->request.payload_bytes();
  lock.unlock();  // a salt and a key are two system calls' worth of time
  const ChunkIdentity identity = IdentityOf(*file);
  file->hasher = std::make_unique<PieceHasher>(
      PieceBytesFor(identity.block_bytes, static_cast<std::uint32_t>(config_.piece_bytes)),
      identity.auth_key);
  lock.lock();
  while (file->copied_bytes < payload) {
    if (file->copied_bytes > 0) {
      wake_.copy.wait(lock,
                      [&]() ENGINE_LOCKED { return IsGivenUp(*file) || staging_.available(); });
      if (IsGivenUp(*file)) return;
      buffer = staging_.Take(lock);
      if (!buffer) {  // out of memory
        jobs_.Settle(*file, {FileStatus::kDropped, 0});
        return;
      }
    }
    const std::uint64_t begin = file->copied_bytes;
    const std::uint64_t end = AlignedEnd(begin, config_.piece_bytes, payload);
    lock.unlock();
    const bool copied = TakePart(*file, begin, end, buffer.data(), context);
    lock.lock();
    if (copied && end == payload) AllTaken(file);
    lock.unlock();
    if (copied) file->hasher->Update(buffer.data(), end - begin);
    lock.lock();
    if (IsGivenUp(*file) || !copied) {
      staging_.Return(std::move(buffer));
      if (!IsGivenUp(*file)) jobs_.Settle(*file, FileResult::IoError(EIO));
      return;
    }
    file->copied_bytes = end;
    stores_.AddStaged(file, {std::move(buffer), end - begin});
  }
}

// Copies payload bytes [begin, end) into `staging`. With the last of them, block memory is free.
bool EngineCore::TakePart(Transfer& file, std::uint64_t begin, std::uint64_t end,
                          std::byte* staging, ThreadContext& context) {
  file.request.memory->Map(file.request.block_ids, begin, end, context.segments);
  const bool begun =
      AwaitEvent(file, context) && file.gate.Copy(context.stream, [&](CopyStream& stream) {
        return stream.BeginOut(context.segments, staging);
      });
  return file.gate.Finish(begun && end == file.request.payload_bytes()) && begun;
}

void EngineCore::AllTaken(const TransferRef& file) {
  if (IsGivenUp(*file)) return;
  deadlines_.Add(DeadlineKind::kPublish, {Clock::now() + ToDuration(config_.store_timeout_seconds),
                                          JobOf(file), file->index});
  jobs_.MarkTaken(*file->job, file->index);
}

bool EngineCore::BeginWriteBehind(EngineLock& lock, Transfer& file, ThreadContext& context) {
  lock.unlock();
  FileResult result;
  auto writer = std::make_unique<ChunkWriter>(root_, io_options_, IdentityOf(file), file.request);
  const ChunkWriter::Start start = writer->Begin(&result, context);
  lock.lock();
  file.writer = std::move(writer);
  if (start == ChunkWriter::Start::kReady) return true;
  EndWriteBehind(lock, file, result, 0);
  return false;
}

// Ends the writer's work on a file, with the temp file gone before the file is settled.
void EngineCore::EndWriteBehind(EngineLock& lock, Transfer& file, FileResult result,
                                std::uint64_t bytes) {
  std::unique_ptr<ChunkWriter> writer = std::move(file.writer);
  if (writer->removed_bad()) ++stats_.removed_bad;
  lock.unlock();
  writer.reset();
  // Settling releases block memory, so a copy that is under way has to end first.
  const bool given_up = file.gate.revoked();
  file.gate.Revoke();
  lock.lock();
  file.active = false;
  if (!given_up) jobs_.Settle(file, result, bytes);
}

// Writes what has been staged of a file so far, and publishes it if that was the last. Never waits
// for a copier: a file that is not complete is left, and queued again with its next part.
void EngineCore::WriteBehind(EngineLock& lock, Transfer& file, ThreadContext& context) {
  file.active = true;
  if (file.writer == nullptr && !BeginWriteBehind(lock, file, context)) return;
  const std::uint64_t payload = file.request.payload_bytes();
  while (!IsGivenUp(file)) {
    FileResult result;
    ChunkWriter& writer = *file.writer;  // this thread's, while the file is active
    if (file.has_ready()) {
      StagedPart part = std::move(file.ready().front());
      file.ready().pop_front();
      lock.unlock();
      result = writer.WriteHashed(part.buffer.data(), part.bytes);
      lock.lock();
      staging_.Return(std::move(part.buffer));
      if (result.ok()) continue;
    } else if (writer.written_bytes() == payload) {
      writer.AdoptHasher(std::move(*file.hasher));
      lock.unlock();
      result = writer.Publish(file.gate, context);
      lock.lock();
    } else {
      file.active = false;
      return;
    }
    EndWriteBehind(lock, file, result, result.ok() ? payload : 0);
    return;
  }
  EndWriteBehind(lock, file, {}, 0);
}

}  // namespace kvshelf
