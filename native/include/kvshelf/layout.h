// Names of chunk files: src/kvshelf/disk/layout.py in C++, for lookups of thousands of keys at
// once.
#pragma once

#include <string>
#include <string_view>

namespace kvshelf {

// "<folder>/<hhh>/<hash>-g<group>.kv", where `folder` is that of a namespace's rank and `key` is a
// block hash and 4 bytes of group index. REQUIRES: key has at least kKeyBytesMin bytes.
inline std::string ChunkPath(std::string_view folder, std::string_view key) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  constexpr std::size_t kGroupBytes = 4;
  constexpr std::size_t kFolderDigits = 3;
  std::string hash;
  for (const char each : key.substr(0, key.size() - kGroupBytes)) {
    const auto byte = static_cast<unsigned char>(each);
    hash += kDigits[byte >> 4];
    hash += kDigits[byte & 15];
  }
  unsigned group = 0;
  for (const char each : key.substr(key.size() - kGroupBytes)) {
    group = group << 8 | static_cast<unsigned char>(each);
  }
  std::string path(folder);
  path.append("/").append(hash, 0, kFolderDigits).append("/").append(hash);
  path.append("-g").append(std::to_string(group)).append(".kv");
  return path;
}

}  // namespace kvshelf
