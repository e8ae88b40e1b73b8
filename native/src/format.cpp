#include "kvshelf/format.h"

#include <algorithm>
#include <cstring>

#include "kvshelf/crc64.h"

namespace kvshelf {
namespace {

std::uint64_t HeaderChecksum(const ChunkHeader& header) {
  ChunkHeader copy = header;
  copy.header_checksum = 0;
  return Crc64(0, &copy, sizeof(copy));
}

// What a piece of a packed file is unless the payload needs larger ones. Measured on a core with 1
// MiB of L2 (benchmarks/bench_packing.py).
constexpr std::uint32_t kPackedPieceBytes = 1 << 20;

// Where a header of kPackedVersion has the bytes of a piece.
constexpr std::size_t StoredBytesAt(std::size_t piece) {
  return offsetof(ChunkHeader, piece_codes) + kPackedPieceCountMax * sizeof(std::uint64_t) +
         piece * sizeof(std::uint32_t);
}

// The index of a tag that is no piece's.
constexpr std::uint32_t kHeaderIndex = 0xFFFFFFFF;

bool HeaderTag(const ChunkHeader& header, PieceCoder& coder, Tag* tag) {
  ChunkHeader copy = header;
  copy.header_checksum = 0;
  copy.header_tag = {};
  coder.Begin(kHeaderIndex);
  coder.Update(&copy, sizeof(copy));
  return coder.End(tag);
}

}  // namespace

PieceCoder::PieceCoder(const AuthKey* key, const Salt& salt) {
  if (key != nullptr) tagger_.emplace(key->ForFile(salt));
}

void PieceCoder::Begin(std::uint32_t piece) {
  crc_ = 0;
  if (tagger_) tagger_->Begin(piece);
}

void PieceCoder::Update(const void* data, std::size_t bytes) {
  if (tagger_) {
    tagger_->Update(data, bytes);
  } else {
    crc_ = Crc64(crc_, data, bytes);
  }
}

bool PieceCoder::End(Tag* code) {
  if (tagger_) return tagger_->End(code);
  *code = {crc_, 0};
  return true;
}

Tag PieceCode(const ChunkHeader& header, std::size_t piece) {
  if (header.authentication == kNotAuthenticated) return {header.piece_codes[piece], 0};
  return {header.piece_codes[2 * piece], header.piece_codes[2 * piece + 1]};
}

void SetPieceCode(ChunkHeader& header, std::size_t piece, const Tag& code) {
  if (header.authentication == kNotAuthenticated) {
    header.piece_codes[piece] = code[0];
  } else {
    header.piece_codes[2 * piece] = code[0];
    header.piece_codes[2 * piece + 1] = code[1];
  }
}

std::uint32_t PackedPieceBytesFor(std::uint64_t block_bytes, std::uint64_t payload_bytes,
                                  std::uint32_t piece_bytes, bool authenticated) {
  const std::uint64_t largest = std::min(piece_bytes, kPackedPieceBytesMax);
  for (std::uint64_t most = std::min<std::uint64_t>(kPackedPieceBytes, largest); most <= largest;
       most *= 2) {
    const std::uint32_t piece = PieceBytesFor(block_bytes, static_cast<std::uint32_t>(most));
    const std::uint64_t count = (payload_bytes + piece - 1) / piece;
    if (count <= PieceCountMax(kPackedVersion, authenticated)) return piece;
  }
  return 0;
}

std::uint64_t PlainBytes(const ChunkHeader& header, std::size_t piece) {
  const std::uint64_t begin = piece * std::uint64_t{header.piece_bytes};
  return std::min<std::uint64_t>(header.piece_bytes, header.payload_bytes - begin);
}

std::uint64_t StoredBytes(const ChunkHeader& header, std::size_t piece) {
  if (header.version != kPackedVersion) return PlainBytes(header, piece);
  std::uint32_t bytes;
  std::memcpy(&bytes, reinterpret_cast<const std::byte*>(&header) + StoredBytesAt(piece),
              sizeof(bytes));
  return bytes;
}

void SetStoredBytes(ChunkHeader& header, std::span<const std::uint32_t> stored_bytes) {
  header.version = kPackedVersion;
  header.packing = kPackedBf16;
  std::memcpy(reinterpret_cast<std::byte*>(&header) + StoredBytesAt(0), stored_bytes.data(),
              stored_bytes.size_bytes());
}

ChunkHeader MakeHeader(const ChunkIdentity& identity, std::uint32_t first_block,
                       std::uint32_t block_count, std::uint32_t piece_bytes) {
  ChunkHeader header{};
  header.magic = kMagic;
  header.version = kPlainVersion;
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
  header.authentication = identity.auth_key == nullptr ? kNotAuthenticated : kGmac;
  std::memcpy(header.key.data(), identity.key.data(), identity.key.size());
  return header;
}

bool SealHeader(ChunkHeader& header, PieceCoder& coder) {
  if (coder.authenticates()) {
    Tag tag;
    if (!HeaderTag(header, coder, &tag)) return false;
    header.header_tag = tag;
  }
  header.header_checksum = HeaderChecksum(header);
  return true;
}

bool HeaderIsSound(const ChunkHeader& header) {
  return header.magic == kMagic && header.header_bytes == kPageBytes &&
         header.header_checksum == HeaderChecksum(header);
}

bool HeaderIsKnown(const ChunkHeader& header) {
  return header.version == kPlainVersion ||
         (header.version == kPackedVersion && header.packing == kPackedBf16);
}

bool HeaderMatches(const ChunkHeader& header, const ChunkIdentity& identity) {
  // key_bytes is compared first: it bounds the comparison of the key itself.
  return HeaderIsKnown(header) && header.namespace_digest == identity.namespace_digest &&
         header.key_bytes == identity.key.size() && identity.key.size() <= kKeyBytesMax &&
         std::memcmp(header.key.data(), identity.key.data(), identity.key.size()) == 0 &&
         header.rank == identity.rank && header.geometry == identity.geometry &&
         header.block_bytes == identity.block_bytes &&
         header.authentication == (identity.auth_key == nullptr ? kNotAuthenticated : kGmac);
}

bool HeaderIsAuthentic(const ChunkHeader& header, PieceCoder& coder) {
  Tag tag;
  return !coder.authenticates() || (HeaderTag(header, coder, &tag) && tag == header.header_tag);
}

bool SizesAgree(const ChunkHeader& header, std::uint64_t file_bytes) {
  std::uint64_t payload = 0;
  std::uint32_t end_block = 0;
  if (header.block_count == 0 || header.block_bytes == 0) return false;
  if (__builtin_mul_overflow(header.block_bytes, std::uint64_t{header.block_count}, &payload)) {
    return false;
  }
  if (__builtin_add_overflow(header.first_block, header.block_count, &end_block)) return false;
  const bool packed = header.version == kPackedVersion;
  constexpr std::uint64_t kPackedMax = kPackedPieceCountMax * std::uint64_t{kPackedPieceBytesMax};
  if (payload != header.payload_bytes || payload > (packed ? kPackedMax : file_bytes)) return false;
  if (header.piece_bytes == 0 || header.piece_bytes % kPageBytes != 0) return false;
  // payload <= 2^63 - 1, so neither this sum nor the rounding can overflow.
  const std::uint64_t pieces = (payload + header.piece_bytes - 1) / header.piece_bytes;
  const bool authenticated = header.authentication != kNotAuthenticated;
  if (pieces != header.piece_count || pieces > PieceCountMax(header.version, authenticated)) {
    return false;
  }
  if (packed && header.piece_bytes > kPackedPieceBytesMax) return false;
  for (std::size_t piece = 0; packed && piece < pieces; ++piece) {
    const std::uint64_t stored = StoredBytes(header, piece);
    if (stored == 0 || stored > PlainBytes(header, piece)) return false;
  }
  return file_bytes == FileBytes(header);
}

bool HasBlocks(const ChunkHeader& header, std::uint32_t first_block, std::uint32_t block_count) {
  return first_block >= header.first_block &&
         std::uint64_t{first_block} + block_count <=
             std::uint64_t{header.first_block} + header.block_count;
}

std::uint64_t FileBytes(const ChunkHeader& header) {
  if (header.version != kPackedVersion) return kPageBytes + RoundUpToPage(header.payload_bytes);
  std::uint64_t bytes = kPageBytes;
  for (std::size_t piece = 0; piece < header.piece_count; ++piece) {
    bytes += RoundUpToPage(StoredBytes(header, piece));
  }
  return bytes;
}

}  // namespace kvshelf
