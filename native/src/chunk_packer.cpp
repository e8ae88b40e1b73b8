#include <algorithm>
#include <cstring>
#include <new>

#include "kvshelf/bf16_pack.h"
#include "kvshelf/chunk_io.h"

namespace kvshelf {
namespace {

// The most that a packed piece may take: a page less than the piece, and at most 15 / 16 of it, or
// unpacking would cost more than the bytes are worth.
std::uint64_t RoomFor(std::uint64_t plain_bytes) {
  return std::min(RoundUpToPage(plain_bytes) - kPageBytes, plain_bytes / 16 * 15);
}

}  // namespace

PieceShape ShapeOf(const ChunkIoOptions& options, const ChunkIdentity& identity,
                   std::uint64_t payload_bytes) {
  if (options.compress) {
    const std::uint32_t packed = PackedPieceBytesFor(
        identity.block_bytes, payload_bytes, options.piece_bytes, identity.auth_key != nullptr);
    if (packed > 0) return {packed, true};
  }
  return {PieceBytesFor(identity.block_bytes, options.piece_bytes), false};
}

std::uint32_t StorePiece(std::span<const std::byte> plain, std::byte* out) {
  std::uint64_t stored = 0;
  if (plain.size() % sizeof(std::uint16_t) == 0) {
    stored = PackBf16({reinterpret_cast<const std::uint16_t*>(plain.data()), plain.size() / 2},
                      {reinterpret_cast<std::uint8_t*>(out), RoomFor(plain.size())});
  }
  if (stored == 0) {
    std::memcpy(out, plain.data(), plain.size());
    stored = plain.size();
  }
  std::memset(out + stored, 0, RoundUpToPage(stored) - stored);
  return static_cast<std::uint32_t>(stored);
}

bool Reserve(StagingBuffer& buffer, std::uint64_t bytes) {
  if (buffer.size() >= bytes) return true;
  try {
    buffer = AllocateAligned(bytes);
  } catch (const std::bad_alloc&) {
    return false;
  }
  return true;
}

}  // namespace kvshelf
