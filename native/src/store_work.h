// Stores: with write-behind, copiers take the bytes and I/O threads write them; without, I/O
// threads do both.
#pragma once

#include "engine_parts.h"

namespace kvshelf {

class StoreWork {
 public:
  explicit StoreWork(EngineParts& parts) : parts_(parts) {}

  void Enqueue(const std::shared_ptr<Job>& job) ENGINE_LOCKED;

  // Of I/O threads: stores the whole file, or writes what was staged of it so far.
  void StoreThrough(EngineLock& lock ENGINE_LOCKED, const std::shared_ptr<Transfer>& store,
                    ThreadContext& context);
  void WriteBehind(EngineLock& lock ENGINE_LOCKED, Transfer& file, ThreadContext& context);
  // Of copiers. `buffer`: for the first part.
  void TakeBytes(EngineLock& lock ENGINE_LOCKED, const std::shared_ptr<Transfer>& file,
                 StagingBuffer buffer, ThreadContext& context);

 private:
  FileResult WriteFromBlocks(Transfer& file, ChunkWriter& writer, ThreadContext& context);
  FileResult WritePieces(Transfer& file, ChunkWriter& writer, ThreadContext& context,
                         std::uint32_t piece_bytes);
  bool PackPiece(Transfer& file, std::uint64_t begin, std::uint64_t end, std::byte* out,
                 std::uint32_t* stored, ThreadContext& context);
  static bool TakePart(Transfer& file, std::uint64_t begin, std::uint64_t end, std::byte* staging,
                       ThreadContext& context);
  bool TakePieces(Transfer& file, std::uint64_t begin, std::uint64_t end, StagedPart& part,
                  std::uint32_t piece_bytes, ThreadContext& context);
  void AllTaken(const std::shared_ptr<Transfer>& file) ENGINE_LOCKED;
  void AddPublishDeadline(const std::shared_ptr<Transfer>& file) ENGINE_LOCKED;
  bool BeginWriteBehind(EngineLock& lock ENGINE_LOCKED, Transfer& file, ThreadContext& context);
  void EndWriteBehind(EngineLock& lock ENGINE_LOCKED, Transfer& file, FileResult result,
                      std::uint64_t bytes);

  EngineParts& parts_;
};

}  // namespace kvshelf
