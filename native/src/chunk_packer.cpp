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

std::span<const std::uint16_t> Numbers(const Segment& segment) {
  return {reinterpret_cast<const std::uint16_t*>(segment.data),
          segment.bytes / sizeof(std::uint16_t)};
}

void Gather(std::span<const Segment> segments, std::byte* to) {
  for (const Segment& segment : segments) {
    std::memcpy(to, segment.data, segment.bytes);
    to += segment.bytes;
  }
}

// Whether each segment can be packed where it lies: whole groups of numbers, but for the last.
bool IsInGroups(std::span<const Segment> segments) {
  constexpr std::size_t kGroupBytes = kPackGroupValues * sizeof(std::uint16_t);
  for (const Segment& segment : segments) {
    const bool is_last = &segment == &segments.back();
    if (reinterpret_cast<std::uintptr_t>(segment.data) % alignof(std::uint16_t) != 0) return false;
    if (segment.bytes % (is_last ? sizeof(std::uint16_t) : kGroupBytes) != 0) return false;
  }
  return true;
}

// 0: it does not shrink to `room` bytes.
std::size_t Pack(std::span<const Segment> segments, std::size_t values,
                 std::span<std::uint8_t> room) {
  ExponentSample sample(values);
  for (const Segment& segment : segments) sample.Add(Numbers(segment));
  const PackTable table = sample.MakeTable();
  // What is no bf16 is known by the sample.
  if (PackedBytesMax(values, sample.EscapesWith(table)) > room.size()) return 0;
  PiecePacker packer(table, values, room);
  for (const Segment& segment : segments) {
    if (!packer.Add(Numbers(segment))) return 0;
  }
  return packer.Finish();
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

std::uint32_t StorePiece(std::span<const Segment> piece, std::byte* scratch, std::byte* out) {
  std::uint64_t bytes = 0;
  for (const Segment& segment : piece) bytes += segment.bytes;
  Segment whole{scratch, bytes};
  if (bytes % sizeof(std::uint16_t) == 0 && !IsInGroups(piece)) {
    Gather(piece, scratch);
    piece = {&whole, 1};
  }
  std::uint64_t stored = 0;
  if (bytes % sizeof(std::uint16_t) == 0) {
    const std::span<std::uint8_t> room(reinterpret_cast<std::uint8_t*>(out), RoomFor(bytes));
    stored = Pack(piece, bytes / sizeof(std::uint16_t), room);
  }
  if (stored == 0) {
    Gather(piece, out);
    stored = bytes;
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
