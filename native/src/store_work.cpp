#include "store_work.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "batch.h"

namespace kvshelf {

void Engine::SubmitStore(JobId id, const Batch& batch) {
  const std::shared_ptr<Job> job = MakeTransferJob(parts_->basis, JobKind::kStore, id, batch);
  const EngineLock lock(parts_->mutex);
  parts_->Add(job);
  StoreWork(*parts_).Enqueue(job);
}

void StoreWork::Enqueue(const std::shared_ptr<Job>& job) {
  const EngineConfig& config = parts_.basis.config;
  parts_.stores.DropSettled();
  for (std::size_t i = 0; i < job->size(); ++i) {
    if (++parts_.jobs.queued(job->kind) > config.queue_files) {
      parts_.jobs.Settle(*job, i, {FileStatus::kDropped, 0}, 0);
    } else {
      parts_.stores.Add(Ref(job, i));
    }
  }
  parts_.deadlines.Add(DeadlineKind::kTake,
                       {job->submitted + ToDuration(config.store_queue_seconds), job});
  if (config.write_behind) parts_.lookups.Add(job);  // chunks that exist need not be copied
  parts_.stores.WakeThreads();
}

// Without write-behind: the whole file at once.
void StoreWork::StoreThrough(EngineLock& lock, const std::shared_ptr<Transfer>& store,
                             ThreadContext& context) {
  parts_.jobs.LeaveQueue(*store->job, store->index);
  AddPublishDeadline(store);
  lock.unlock();
  Transfer& file = *store;
  const ChunkIdentity identity = parts_.basis.IdentityOf(file);
  FileResult result;
  std::uint64_t bytes = 0;
  bool removed = false;
  {
    ChunkWriter writer(parts_.basis.root, parts_.basis.io_options, identity, file.request);
    if (writer.Begin(&result, context) == ChunkWriter::Start::kReady) {
      result = AwaitEvent(file, context) ? FileResult{} : FileResult::IoError(EIO);
      if (result.ok()) result = WriteFromBlocks(file, writer, context);
      if (result.ok()) result = writer.Publish(file.gate, context);
      if (result.ok()) bytes = file.request.payload_bytes();
      if (result.ok()) parts_.stored.Add(bytes, writer.file_bytes());
    }
    removed = writer.removed_bad();
  }  // a temp file that was not published is gone before anybody hears of the failure
  lock.lock();
  if (removed) ++parts_.removed_bad;
  if (!IsGivenUp(file)) parts_.jobs.Settle(file, result, bytes);
}

FileResult StoreWork::WriteFromBlocks(Transfer& file, ChunkWriter& writer, ThreadContext& context) {
  const std::uint64_t payload = file.request.payload_bytes();
  if (writer.shape().packs) return WritePieces(file, writer, context, writer.shape().piece_bytes);
  const bool in_place = parts_.basis.device->host_accessible() && !parts_.basis.io_options.direct;
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

FileResult StoreWork::WritePieces(Transfer& file, ChunkWriter& writer, ThreadContext& context,
                                  std::uint32_t piece_bytes) {
  const std::uint64_t payload = file.request.payload_bytes();
  if (!Reserve(context.packed, piece_bytes)) return FileResult::IoError(ENOMEM);
  while (writer.written_bytes() < payload) {
    const std::uint64_t begin = writer.written_bytes();
    const std::uint64_t end = std::min(begin + piece_bytes, payload);
    std::uint32_t stored = 0;
    if (!PackPiece(file, begin, end, context.packed.data(), &stored, context)) {
      return FileResult::IoError(EIO);
    }
    const FileResult result = writer.WritePiece(context.packed.data(), stored, end - begin);
    if (!result.ok()) return result;
  }
  return {};
}

// Packs a piece, payload bytes [begin, end), out of block memory. That of a GPU comes through the
// step buffer.
bool StoreWork::PackPiece(Transfer& file, std::uint64_t begin, std::uint64_t end, std::byte* out,
                          std::uint32_t* stored, ThreadContext& context) {
  const GroupMemory& memory = *file.request.memory;
  if (!Reserve(context.plain, RoundUpToPage(end - begin))) return false;
  std::byte* const plain = context.plain.data();
  if (parts_.basis.device->host_accessible()) {
    memory.Map(file.request.block_ids, begin, end, context.segments);
    return file.gate.Run([&] {
      *stored = StorePiece(context.segments, plain, out);
      return true;
    });
  }
  for (std::uint64_t at = begin; at < end;) {
    const std::uint64_t step = std::min<std::uint64_t>(context.step.size(), end - at);
    memory.Map(file.request.block_ids, at, at + step, context.segments);
    const bool copied = file.gate.Copy(context.stream, [&](CopyStream& stream) {
      return stream.BeginOut(context.segments, context.step.data()) && stream.Wait();
    });
    if (!copied) return false;
    std::memcpy(plain + (at - begin), context.step.data(), step);
    at += step;
  }
  const Segment piece{plain, end - begin};
  *stored = StorePiece({&piece, 1}, plain, out);
  return true;
}

void StoreWork::AddPublishDeadline(const std::shared_ptr<Transfer>& file) {
  const TimePoint time = Clock::now() + ToDuration(parts_.basis.config.store_timeout_seconds);
  parts_.deadlines.Add(DeadlineKind::kPublish, {time, JobOf(file), file->index});
}

// A copier's work: takes a file's bytes into staging, a part at a time as buffers become free, and
// hashes them there: the threads that write have enough to do. No file I/O, so that no storage can
// hold block memory.
void StoreWork::TakeBytes(EngineLock& lock, const std::shared_ptr<Transfer>& file,
                          StagingBuffer buffer, ThreadContext& context) {
  const std::uint64_t payload = file->request.payload_bytes();
  lock.unlock();  // a salt and a key are two system calls' worth of time
  const ChunkIdentity identity = parts_.basis.IdentityOf(*file);
  const PieceShape shape = ShapeOf(parts_.basis.io_options, identity, payload);
  file->hasher = std::make_unique<PieceHasher>(shape.piece_bytes, identity.auth_key);
  lock.lock();
  while (file->copied_bytes < payload) {
    if (file->copied_bytes > 0) {
      parts_.wake.copy.wait(
          lock, [&]() ENGINE_LOCKED { return IsGivenUp(*file) || parts_.staging.available(); });
      if (IsGivenUp(*file)) return;
      buffer = parts_.staging.Take(lock);
      if (!buffer) {  // out of memory
        parts_.jobs.Settle(*file, {FileStatus::kDropped, 0});
        return;
      }
    }
    KVSHELF_DCHECK(buffer.size() >= parts_.basis.config.piece_bytes);
    const std::uint64_t begin = file->copied_bytes;
    const std::uint64_t whole_pieces = buffer.size() / shape.piece_bytes * shape.piece_bytes;
    const std::uint64_t end = shape.packs
                                  ? std::min(begin + whole_pieces, payload)
                                  : AlignedEnd(begin, parts_.basis.config.piece_bytes, payload);
    StagedPart part{std::move(buffer), end - begin, end - begin};
    lock.unlock();
    const bool copied = shape.packs
                            ? TakePieces(*file, begin, end, part, shape.piece_bytes, context)
                            : TakePart(*file, begin, end, part.buffer.data(), context);
    lock.lock();
    if (copied && end == payload) AllTaken(file);
    lock.unlock();
    if (copied && !shape.packs) file->hasher->Update(part.buffer.data(), part.bytes);
    lock.lock();
    if (IsGivenUp(*file) || !copied) {
      parts_.staging.Return(std::move(part.buffer));
      if (!IsGivenUp(*file)) parts_.jobs.Settle(*file, FileResult::IoError(EIO));
      return;
    }
    file->copied_bytes = end;
    parts_.stores.AddStaged(file, std::move(part));
  }
}

// The same for whole pieces, packed and hashed one by one while each is in cache. A GPU's are
// copied at once, which is faster, and packed from there.
bool StoreWork::TakePieces(Transfer& file, std::uint64_t begin, std::uint64_t end, StagedPart& part,
                           std::uint32_t piece_bytes, ThreadContext& context) {
  const bool on_host = parts_.basis.device->host_accessible();
  std::byte* const staging = part.buffer.data();
  if (!Reserve(context.plain, piece_bytes)) return false;
  if (!on_host && !TakePart(file, begin, end, staging, context)) return false;
  part.bytes = 0;
  for (std::uint64_t at = begin; at < end; at += piece_bytes) {
    const std::uint64_t bytes = std::min<std::uint64_t>(piece_bytes, end - at);
    std::byte* const packed = staging + part.bytes;
    std::uint32_t stored = 0;
    if (on_host) {
      if (!PackPiece(file, at, at + bytes, packed, &stored, context)) return false;
      if (at + bytes == file.request.payload_bytes() && !file.gate.Finish(true)) return false;
    } else {  // its place in staging is the packed one's too
      std::memcpy(context.plain.data(), staging + (at - begin), bytes);
      const Segment piece{context.plain.data(), bytes};
      stored = StorePiece({&piece, 1}, context.plain.data(), packed);
    }
    file.hasher->AddPiece(packed, stored);
    part.bytes += RoundUpToPage(stored);
  }
  return true;
}

// Copies payload bytes [begin, end) into `staging`. With the last of them, block memory is free.
bool StoreWork::TakePart(Transfer& file, std::uint64_t begin, std::uint64_t end, std::byte* staging,
                         ThreadContext& context) {
  file.request.memory->Map(file.request.block_ids, begin, end, context.segments);
  const bool begun =
      AwaitEvent(file, context) && file.gate.Copy(context.stream, [&](CopyStream& stream) {
        return stream.BeginOut(context.segments, staging);
      });
  return file.gate.Finish(begun && end == file.request.payload_bytes()) && begun;
}

void StoreWork::AllTaken(const std::shared_ptr<Transfer>& file) {
  if (IsGivenUp(*file)) return;
  AddPublishDeadline(file);
  parts_.jobs.MarkTaken(*file->job, file->index);
}

bool StoreWork::BeginWriteBehind(EngineLock& lock, Transfer& file, ThreadContext& context) {
  lock.unlock();
  FileResult result;
  auto writer = std::make_unique<ChunkWriter>(parts_.basis.root, parts_.basis.io_options,
                                              parts_.basis.IdentityOf(file), file.request);
  const ChunkWriter::Start start = writer->Begin(&result, context);
  lock.lock();
  file.writer = std::move(writer);
  if (start == ChunkWriter::Start::kReady) return true;
  EndWriteBehind(lock, file, result, 0);
  return false;
}

// Ends the writer's work on a file, with the temp file gone before the file is settled.
void StoreWork::EndWriteBehind(EngineLock& lock, Transfer& file, FileResult result,
                               std::uint64_t bytes) {
  KVSHELF_DCHECK(file.active && file.writer != nullptr);
  std::unique_ptr<ChunkWriter> writer = std::move(file.writer);
  if (writer->removed_bad()) ++parts_.removed_bad;
  lock.unlock();
  writer.reset();
  // Settling releases block memory, so a copy that is under way has to end first.
  const bool given_up = file.gate.revoked();
  file.gate.Revoke();
  lock.lock();
  file.active = false;
  if (!given_up) parts_.jobs.Settle(file, result, bytes);
}

// Writes what has been staged of a file so far, and publishes it if that was the last. Never waits
// for a copier: a file that is not complete is left, and queued again with its next part.
void StoreWork::WriteBehind(EngineLock& lock, Transfer& file, ThreadContext& context) {
  KVSHELF_DCHECK(!file.active);
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
      result = writer.shape().packs
                   ? writer.WritePieces(part.buffer.data(), part.bytes, part.payload_bytes)
                   : writer.WriteHashed(part.buffer.data(), part.bytes);
      lock.lock();
      parts_.staging.Return(std::move(part.buffer));
      if (result.ok()) continue;
    } else if (writer.written_bytes() == payload) {
      writer.AdoptHasher(std::move(*file.hasher));
      lock.unlock();
      result = writer.Publish(file.gate, context);
      if (result.ok()) parts_.stored.Add(payload, writer.file_bytes());
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
