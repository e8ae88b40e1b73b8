#include "kvshelf/format.h"

#include <cstring>

#include "kvshelf/crc64.h"

namespace kvshelf {
namespace {

std::uint64_t HeaderChecksum(const ChunkHeader& header) {
  ChunkHeader copy = header;
  copy.header_checksum = 0;
  return Crc64(0, &copy, sizeof(copy));
}

}  // namespace

ChunkHeader MakeHeader(const ChunkIdentity& identity, std::uint32_t first_block,
                       std::uint32_t block_count, std::uint32_t piece_bytes) {
  ChunkHeader header{};
  header.magic = kMagic;
  header.version = kFormatVersion;
  header.header_bytes = kPageBytes;
  header.payload_bytes = identity.block_bytes * block_count;
  header.piece_bytes = piece_bytes;
  header.piece_count =
      static_cast<std::uint32_t>((header.payload_bytes + piece_bytes - 1) / piece_bytes);
  header.block_bytes = identity.block_bytes;
  header.first_block = first_block;
  header.block_count = block_count;
  header.geometry = identity.geometry;
  header.namespace_digest = identity.namespace_digest;
  header.key_bytes = static_cast<std::uint16_t>(identity.key.size());
  header.rank = identity.rank;
  std::memcpy(header.key.data(), identity.key.data(), identity.key.size());
  return header;
}

void SealHeader(ChunkHeader& header) { header.header_checksum = HeaderChecksum(header); }

bool HeaderIsSound(const ChunkHeader& header) {
  return header.magic == kMagic && header.header_bytes == kPageBytes &&
         header.header_checksum == HeaderChecksum(header);
}

bool HeaderMatches(const ChunkHeader& header, const ChunkIdentity& identity) {
  // key_bytes is compared first: it bounds the comparison of the key itself.
  return header.version == kFormatVersion && header.namespace_digest == identity.namespace_digest &&
         header.key_bytes == identity.key.size() && identity.key.size() <= kKeyBytesMax &&
         std::memcmp(header.key.data(), identity.key.data(), identity.key.size()) == 0 &&
         header.rank == identity.rank && header.geometry == identity.geometry &&
         header.block_bytes == identity.block_bytes;
}

bool SizesAgree(const ChunkHeader& header, std::uint64_t file_bytes) {
  std::uint64_t payload = 0;
  std::uint32_t end_block = 0;
  if (header.block_count == 0 || header.block_bytes == 0) return false;
  if (__builtin_mul_overflow(header.block_bytes, std::uint64_t{header.block_count}, &payload)) {
    return false;
  }
  if (__builtin_add_overflow(header.first_block, header.block_count, &end_block)) return false;
  if (payload != header.payload_bytes || payload > file_bytes) return false;
  if (header.piece_bytes == 0 || header.piece_bytes % kPageBytes != 0) return false;
  // payload <= file_bytes <= 2^63 - 1, so neither this sum nor the rounding can overflow.
  const std::uint64_t pieces = (payload + header.piece_bytes - 1) / header.piece_bytes;
  if (pieces != header.piece_count || pieces > kPieceCountMax) return false;
  return file_bytes == FileBytes(header);
}

bool HasBlocks(const ChunkHeader& header, std::uint32_t first_block, std::uint32_t block_count) {
  return first_block >= header.first_block &&
         std::uint64_t{first_block} + block_count <=
             std::uint64_t{header.first_block} + header.block_count;
}

std::uint64_t FileBytes(const ChunkHeader& header) {
  return kPageBytes + RoundUpToPage(header.payload_bytes);
}

}  // namespace kvshelf
