// docs/format.md, read slowly: a second reader, to judge the first. Numbers are wider than any sum
// of them can become, so nothing here can overflow.
#pragma once

#include <string_view>

#include "fuzz.h"
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

// Step 3. REQUIRES: a whole header.
inline bool Expected(std::string_view file, const Wanted& wanted) {
  const std::size_t key_bytes = FieldAt<std::uint16_t>(file, 96);
  return FieldAt<std::uint32_t>(file, 8) == 1 &&
         FieldAt<NamespaceDigest>(file, 64) == wanted.namespace_digest && key_bytes <= 128 &&
         file.substr(104, key_bytes) == wanted.key &&
         FieldAt<std::uint32_t>(file, 100) == wanted.rank &&
         FieldAt<std::uint64_t>(file, 56) == wanted.geometry &&
         FieldAt<std::uint64_t>(file, 40) == wanted.block_bytes &&
         FieldAt<std::uint16_t>(file, 98) == 0;  // no tags: nothing here has a key
}

// Step 4. REQUIRES: a whole header.
inline bool Agrees(std::string_view file, Wide file_bytes) {
  const Wide block_bytes = FieldAt<std::uint64_t>(file, 40);
  const Wide first = FieldAt<std::uint32_t>(file, 48), count = FieldAt<std::uint32_t>(file, 52);
  const Wide payload = FieldAt<std::uint64_t>(file, 24);
  const Wide piece = FieldAt<std::uint32_t>(file, 32), pieces = FieldAt<std::uint32_t>(file, 36);
  const Wide pieces_max = FieldAt<std::uint16_t>(file, 98) == 0 ? 448 : 224;
  return payload == block_bytes * count && payload > 0 && first + count < (Wide{1} << 32) &&
         piece > 0 && piece % 4096 == 0 && pieces == (payload + piece - 1) / piece &&
         pieces <= pieces_max && file_bytes == 4096 + (payload + 4095) / 4096 * 4096;
}

// What a reader must say of a file, and where the wanted bytes of a good one lie in it.
inline FileStatus Judge(std::string_view file, const Wanted& wanted, bool verify,
                        std::size_t* begin) {
  if (!Sound(file)) return FileStatus::kCorrupt;
  if (!Expected(file, wanted)) return FileStatus::kForeign;
  if (!Agrees(file, file.size())) return FileStatus::kCorrupt;
  const Wide first = FieldAt<std::uint32_t>(file, 48), count = FieldAt<std::uint32_t>(file, 52);
  if (wanted.first_block < first || wanted.first_block + Wide{wanted.block_count} > first + count) {
    return FileStatus::kNotFound;
  }
  const std::size_t piece = FieldAt<std::uint32_t>(file, 32);
  const std::size_t payload = FieldAt<std::uint64_t>(file, 24);
  const std::size_t from =
      (wanted.first_block - static_cast<std::size_t>(first)) * wanted.block_bytes;
  const std::size_t to = from + wanted.block_count * wanted.block_bytes;
  *begin = kPageBytes + from;
  for (std::size_t i = from / piece; verify && i * piece < to; ++i) {
    const std::size_t end = payload < (i + 1) * piece ? payload : (i + 1) * piece;
    const std::uint64_t crc = SlowCrc(file.substr(kPageBytes + i * piece, end - i * piece));
    if (crc != FieldAt<std::uint64_t>(file, 512 + 8 * i)) return FileStatus::kCorrupt;
  }
  return FileStatus::kOk;
}

}  // namespace kvshelf::fuzz
