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

bool HeaderMatches(const ChunkHeader& header, const ChunkIdentity& identity) {
  // key_bytes is compared first: it bounds the comparison of the key itself.
  return header.version == kFormatVersion && header.namespace_digest == identity.namespace_digest &&
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
  if (payload != header.payload_bytes || payload > file_bytes) return false;
  if (header.piece_bytes == 0 || header.piece_bytes % kPageBytes != 0) return false;
  // payload <= file_bytes <= 2^63 - 1, so neither this sum nor the rounding can overflow.
  const std::uint64_t pieces = (payload + header.piece_bytes - 1) / header.piece_bytes;
  const bool authenticated = header.authentication != kNotAuthenticated;
  if (pieces != header.piece_count || pieces > PieceCountMax(authenticated)) return false;
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
