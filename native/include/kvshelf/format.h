// The header page of a chunk file. See docs/format.md, which this file only encodes.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <optional>
#include <span>
#include <string_view>

#include "kvshelf/authentication.h"
#include "kvshelf/status.h"

namespace kvshelf {

inline constexpr std::uint64_t kPageBytes = 4096;  // header, padding and O_DIRECT alignment
inline constexpr std::uint32_t kPlainVersion = 1;
inline constexpr std::uint32_t kPackedVersion = 2;  // pieces have lengths of their own
inline constexpr std::uint32_t kPackedBf16 = 1;     // `packing`: see kvshelf/bf16_pack.h
// Half as many if they are authenticated.
inline constexpr std::size_t kPieceCountMax = 448;
inline constexpr std::size_t kPackedPieceCountMax = 256;
// A packed piece is verified before it is unpacked, so a reader holds all of it.
inline constexpr std::uint32_t kPackedPieceBytesMax = 64 << 20;
inline constexpr std::size_t kKeyBytesMin = 12;
inline constexpr std::size_t kKeyBytesMax = 128;
inline constexpr std::size_t kNamespaceBytes = 32;
inline constexpr std::uint16_t kNotAuthenticated = 0;
inline constexpr std::uint16_t kGmac = 1;
inline constexpr std::array<std::uint8_t, 8> kMagic = {'K', 'V', 'S', 'H', 'E', 'L', 'F', '\n'};

using NamespaceDigest = std::array<std::uint8_t, kNamespaceBytes>;

// The page as it lies in the file. All numbers are little-endian there, so this struct is the
// codec on every machine that vLLM runs on; a big-endian one does not compile.
struct ChunkHeader {
  std::array<std::uint8_t, 8> magic;
  std::uint32_t version;
  std::uint32_t header_bytes;
  std::uint64_t header_checksum;
  std::uint64_t payload_bytes;
  std::uint32_t piece_bytes;
  std::uint32_t piece_count;
  std::uint64_t block_bytes;
  std::uint32_t first_block;
  std::uint32_t block_count;
  std::uint64_t geometry;
  NamespaceDigest namespace_digest;
  std::uint16_t key_bytes;
  std::uint16_t authentication;
  std::uint32_t rank;
  std::array<std::uint8_t, kKeyBytesMax> key;
  Salt salt;
  Tag header_tag;
  std::uint32_t packing;  // of kPackedVersion; else reserved
  std::array<std::uint8_t, 228> reserved;
  // Checksums, or tags of two numbers. In kPackedVersion the first kPackedPieceCountMax numbers,
  // then the bytes of each piece in the file, two to a number: StoredBytes.
  std::array<std::uint64_t, kPieceCountMax> piece_codes;
};
static_assert(std::endian::native == std::endian::little);
static_assert(sizeof(ChunkHeader) == kPageBytes);
static_assert(offsetof(ChunkHeader, header_checksum) == 16);
static_assert(offsetof(ChunkHeader, payload_bytes) == 24);
static_assert(offsetof(ChunkHeader, piece_bytes) == 32);
static_assert(offsetof(ChunkHeader, block_bytes) == 40);
static_assert(offsetof(ChunkHeader, first_block) == 48);
static_assert(offsetof(ChunkHeader, geometry) == 56);
static_assert(offsetof(ChunkHeader, namespace_digest) == 64);
static_assert(offsetof(ChunkHeader, key_bytes) == 96);
static_assert(offsetof(ChunkHeader, rank) == 100);
static_assert(offsetof(ChunkHeader, key) == 104);
static_assert(offsetof(ChunkHeader, salt) == 232);
static_assert(offsetof(ChunkHeader, header_tag) == 264);
static_assert(offsetof(ChunkHeader, packing) == 280);
static_assert(offsetof(ChunkHeader, piece_codes) == 512);

// What a header must say to be the chunk that a reader asks for.
struct ChunkIdentity {
  NamespaceDigest namespace_digest{};
  std::string_view key;
  std::uint32_t rank = 0;
  std::uint64_t geometry = 0;
  std::uint64_t block_bytes = 0;
  const AuthKey* auth_key = nullptr;  // null: the file must not be authenticated
};

constexpr std::uint64_t RoundUpToPage(std::uint64_t bytes) {
  return (bytes + (kPageBytes - 1)) & ~(kPageBytes - 1);
}

// Where a transfer of at most `unit` payload bytes from `begin` should end so that the next begins
// at a multiple of `unit` in the file: page caches use large folios only where these are aligned,
// and steps counted from the payload's start (4096) cost ext4 a sixth more.
constexpr std::uint64_t AlignedEnd(std::uint64_t begin, std::uint64_t unit, std::uint64_t payload) {
  const std::uint64_t end = ((kPageBytes + begin) / unit + 1) * unit - kPageBytes;
  return end < payload ? end : payload;
}

// The piece size of a file: the most whole blocks that fit into `piece_bytes` and make whole pages,
// so that a part of a chunk is read without the rest; `piece_bytes` itself where there is no such
// size.
constexpr std::uint32_t PieceBytesFor(std::uint64_t block_bytes, std::uint32_t piece_bytes) {
  const std::uint64_t unit = std::lcm(block_bytes, kPageBytes);
  return unit > piece_bytes ? piece_bytes : static_cast<std::uint32_t>(piece_bytes / unit * unit);
}

constexpr std::size_t PieceCountMax(std::uint32_t version, bool authenticated) {
  const std::size_t most = version == kPackedVersion ? kPackedPieceCountMax : kPieceCountMax;
  return authenticated ? most / 2 : most;
}

// The piece size of a file whose pieces are packed, at most `piece_bytes`: small enough to stay in
// a core's cache between hash and unpacking. 0: the payload needs more pieces than a header holds.
std::uint32_t PackedPieceBytesFor(std::uint64_t block_bytes, std::uint64_t payload_bytes,
                                  std::uint32_t piece_bytes, bool authenticated);

// What a header keeps of a piece: its checksum, or its tag in an authenticated file. One thread at
// a time.
class PieceCoder {
 public:
  // `key` null: checksums.
  PieceCoder(const AuthKey* key, const Salt& salt);
  void Begin(std::uint32_t piece);
  void Update(const void* data, std::size_t bytes);
  // False: it cannot be told.
  bool End(Tag* code);
  bool authenticates() const { return tagger_.has_value(); }

 private:
  std::optional<Tagger> tagger_;
  std::uint64_t crc_ = 0;
};

// The code that a header has for a piece. REQUIRES: piece < piece_count, SizesAgree.
Tag PieceCode(const ChunkHeader& header, std::size_t piece);
void SetPieceCode(ChunkHeader& header, std::size_t piece, const Tag& code);

// Bytes of the payload that a piece covers, and those that the file has in their place: fewer if
// the piece is packed, else as many. REQUIRES: as PieceCode.
std::uint64_t PlainBytes(const ChunkHeader& header, std::size_t piece);
std::uint64_t StoredBytes(const ChunkHeader& header, std::size_t piece);
// Makes it a header of kPackedVersion, with one number a piece.
void SetStoredBytes(ChunkHeader& header, std::span<const std::uint32_t> stored_bytes);

// A header for `block_count` blocks from `first_block`, without salt and codes.
// REQUIRES: the payload needs at most PieceCountMax pieces; key of 12 to 128 bytes.
ChunkHeader MakeHeader(const ChunkIdentity& identity, std::uint32_t first_block,
                       std::uint32_t block_count, std::uint32_t piece_bytes);

// Sets header_tag, if `coder` authenticates, and header_checksum; the page is then ready to be
// written. False: there is no tag.
bool SealHeader(ChunkHeader& header, PieceCoder& coder);

// Step 2 of "What a reader checks": magic, header_bytes and header_checksum.
bool HeaderIsSound(const ChunkHeader& header);

// Step 3: whether a sound header is of a version, and a packing, that we read. What is not was
// written by another kvshelf, whose readers may need it: nobody removes it.
bool HeaderIsKnown(const ChunkHeader& header);

// Step 4: whether it is known and the expected chunk, and authenticated or not as expected; and
// whether whoever sealed it had the key.
bool HeaderMatches(const ChunkHeader& header, const ChunkIdentity& identity);
bool HeaderIsAuthentic(const ChunkHeader& header, PieceCoder& coder);

// Step 5: whether sizes agree with each other and with the file's. Nothing in `header` is trusted.
bool SizesAgree(const ChunkHeader& header, std::uint64_t file_bytes);

// Step 6: whether blocks first_block ... first_block + block_count - 1 are in the file.
bool HasBlocks(const ChunkHeader& header, std::uint32_t first_block, std::uint32_t block_count);

// Bytes of the whole file. REQUIRES: SizesAgree, or a header made by MakeHeader.
std::uint64_t FileBytes(const ChunkHeader& header);

}  // namespace kvshelf
