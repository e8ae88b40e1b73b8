#include "sweep_parts.h"

#include <dirent.h>
#include <unistd.h>

#include <cerrno>
#include <string_view>

namespace kvshelf::sweep {

std::string RankName(std::uint32_t number) {
  return std::string("r").append(std::to_string(number));
}

std::string LeafName(std::size_t index) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  return {kDigits[index >> 8], kDigits[index >> 4 & 15], kDigits[index & 15]};
}

int ListNames(int folder, std::vector<std::string>* names) {
  if (::lseek(folder, 0, SEEK_SET) < 0) return -errno;
  alignas(dirent64) char buffer[16384];
  for (;;) {
    const ssize_t bytes = ::getdents64(folder, buffer, sizeof(buffer));
    if (bytes < 0 && errno == EINTR) continue;
    if (bytes <= 0) return bytes < 0 ? -errno : 0;
    for (ssize_t at = 0; at < bytes;) {
      const auto* const entry = reinterpret_cast<const dirent64*>(buffer + at);
      const std::string_view name = entry->d_name;
      if (name != "." && name != "..") names->emplace_back(name);
      at += entry->d_reclen;
    }
  }
}

void NoteForeign(Foreign& foreign, const std::string& path) {
  ++foreign.count;
  if (foreign.examples.size() < kExamples) foreign.examples.push_back(path);
}

}  // namespace kvshelf::sweep
