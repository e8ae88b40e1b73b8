// docs/format.md, read slowly: a second reader, to judge the first. Numbers are wider than any sum
// of them can become, so nothing here can overflow.
#pragma once

#include <string_view>

#include "fuzz.h"
#include "kvshelf/bf16_pack.h"
#include "kvshelf/crc64.h"
#include "kvshelf/format.h"

namespace kvshelf::fuzz {

__extension__ using Wide = unsigned __int128;

struct Wanted {
  NamespaceDigest namespace_digest{};
  std::string key;
  std::uint32_t rank = 0;
  std::uint64_t geometry = 0;
  std::uint64_t block_bytes = 0;
  std::uint32_t first_block = 0;
  std::uint32_t block_count = 0;
};

template <typename Number>
Number FieldAt(std::string_view file, std::size_t offset) {
  Number value;
  std::memcpy(&value, file.data() + offset, sizeof(value));
  return value;
}

inline std::uint64_t SlowCrc(std::string_view bytes) {
  return Crc64Variants()[0].function(0, bytes.data(), bytes.size());
}

inline std::uint64_t HeaderCrc(std::string_view file) {
  std::string page(file.substr(0, kPageBytes));
  std::memset(page.data() + 16, 0, 8);
  return SlowCrc(page);
}

// Step 2.
inline bool Sound(std::string_view file) {
  return file.size() >= kPageBytes && file.substr(0, 8) == "KVSHELF\n" &&
         FieldAt<std::uint32_t>(file, 12) == kPageBytes &&
         FieldAt<std::uint64_t>(file, 16) == HeaderCrc(file);
}

inline bool IsPackedFile(std::string_view file) { return FieldAt<std::uint32_t>(file, 8) == 2; }

// Step 3. REQUIRES: a whole header.
inline bool Known(std::string_view file) {
  return FieldAt<std::uint32_t>(file, 8) == 1 ||
         (IsPackedFile(file) && FieldAt<std::uint32_t>(file, 280) == 1);
}

// Step 4. REQUIRES: a whole header.
inline bool Expected(std::string_view file, const Wanted& wanted) {
  const std::size_t key_bytes = FieldAt<std::uint16_t>(file, 96);
  return Known(file) && FieldAt<NamespaceDigest>(file, 64) == wanted.namespace_digest &&
         key_bytes <= 128 && file.substr(104, key_bytes) == wanted.key &&
         FieldAt<std::uint32_t>(file, 100) == wanted.rank &&
         FieldAt<std::uint64_t>(file, 56) == wanted.geometry &&
         FieldAt<std::uint64_t>(file, 40) == wanted.block_bytes &&
         FieldAt<std::uint16_t>(file, 98) == 0;  // no tags: nothing here has a key
}

// Bytes of the payload in piece i, and of the file. REQUIRES: as many pieces as the sizes say.
inline Wide PlainAt(std::string_view file, std::size_t i) {
  const Wide piece = FieldAt<std::uint32_t>(file, 32), payload = FieldAt<std::uint64_t>(file, 24);
  return payload - i * piece < piece ? payload - i * piece : piece;
}
inline Wide StoredAt(std::string_view file, std::size_t i) {
  return IsPackedFile(file) ? FieldAt<std::uint32_t>(file, 2560 + 4 * i) : PlainAt(file, i);
}

// Step 5. REQUIRES: a whole header.
inline bool Agrees(std::string_view file, Wide file_bytes) {
  const Wide block_bytes = FieldAt<std::uint64_t>(file, 40);
  const Wide first = FieldAt<std::uint32_t>(file, 48), count = FieldAt<std::uint32_t>(file, 52);
  const Wide payload = FieldAt<std::uint64_t>(file, 24);
  const Wide piece = FieldAt<std::uint32_t>(file, 32), pieces = FieldAt<std::uint32_t>(file, 36);
  const Wide pieces_max =
      (IsPackedFile(file) ? 256 : 448) / (FieldAt<std::uint16_t>(file, 98) == 0 ? 1 : 2);
  if (payload != block_bytes * count || payload == 0 || first + count >= (Wide{1} << 32) ||
      piece == 0 || piece % 4096 != 0 || pieces != (payload + piece - 1) / piece ||
      pieces > pieces_max || (IsPackedFile(file) && piece > (64 << 20))) {
    return false;
  }
  Wide expected = 4096;
  for (std::size_t i = 0; i < pieces; ++i) {
    const Wide stored = StoredAt(file, i);
    if (stored == 0 || stored > PlainAt(file, i)) return false;
    expected += (stored + 4095) / 4096 * 4096;
  }
  return file_bytes == expected;
}

// A packed piece, unpacked; empty if it cannot be.
inline std::string Unpacked(std::string_view stored, std::size_t plain_bytes) {
  std::vector<std::uint16_t> values(plain_bytes / 2);
  const std::span<const std::uint8_t> packed(reinterpret_cast<const std::uint8_t*>(stored.data()),
                                             stored.size());
  if (plain_bytes % 2 != 0 || !PackVariants().front().unpack(packed, values)) return {};
  return {reinterpret_cast<const char*>(values.data()), plain_bytes};
}

// What a reader must say of a file, and the wanted bytes of a good one.
inline FileStatus Judge(std::string_view file, const Wanted& wanted, bool verify,
                        std::string* payload) {
  if (!Sound(file)) return FileStatus::kCorrupt;
  if (!Expected(file, wanted)) return FileStatus::kForeign;
  if (!Agrees(file, file.size())) return FileStatus::kCorrupt;
  const Wide first = FieldAt<std::uint32_t>(file, 48), count = FieldAt<std::uint32_t>(file, 52);
  if (wanted.first_block < first || wanted.first_block + Wide{wanted.block_count} > first + count) {
    return FileStatus::kNotFound;
  }
  const std::size_t from =
      (wanted.first_block - static_cast<std::size_t>(first)) * wanted.block_bytes;
  const std::size_t to = from + wanted.block_count * wanted.block_bytes;
  std::size_t begin = 0, offset = 4096;  // of a piece: in the payload, in the file
  for (std::size_t i = 0; begin < to; ++i) {
    const auto plain = static_cast<std::size_t>(PlainAt(file, i));
    const auto bytes = static_cast<std::size_t>(StoredAt(file, i));
    const std::string_view stored = file.substr(offset, bytes);
    if (begin + plain > from) {
      if (verify && SlowCrc(stored) != FieldAt<std::uint64_t>(file, 512 + 8 * i)) {
        return FileStatus::kCorrupt;
      }
      const std::string piece = bytes < plain ? Unpacked(stored, plain) : std::string(stored);
      if (piece.empty()) return FileStatus::kCorrupt;
      const std::size_t skipped = from > begin ? from - begin : 0;
      payload->append(piece, skipped, to - begin - skipped);
    }
    begin += plain;
    offset += (bytes + 4095) / 4096 * 4096;
  }
  return FileStatus::kOk;
}

}  // namespace kvshelf::fuzz
