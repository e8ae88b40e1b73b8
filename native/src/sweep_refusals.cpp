#include "sweep_refusals.h"

#include <functional>

namespace kvshelf::sweep {
namespace {

std::uint64_t HashOf(const Rank& rank, const std::string& name) {
  constexpr std::uint64_t kOdd = 0x9e3779b97f4a7c15;
  const std::uint64_t folder =
      (static_cast<std::uint64_t>(rank.name_space) << 32 | rank.number) * kOdd;
  return (std::hash<std::string>{}(name) ^ folder) * kOdd;
}

}  // namespace

void Refusals::Add(const Rank& rank, const std::string& path, const std::string& name,
                   const struct stat& file, int error) {
  if (files_.size() >= files_max_) return;
  const UseTime use = LastUse(file);
  const File refused{rank.name_space, use.reused, use.ns, file.st_size};
  if (!files_.try_emplace(HashOf(rank, name), refused).second) return;
  held_.amount.files += 1;
  held_.amount.bytes += file.st_size;
  ++held_.by_errno[error];
  if (held_.examples.size() < kExamples) held_.examples.push_back(path);
}

bool Refusals::Has(const Rank& rank, const std::string& name) const {
  return !files_.empty() && files_.contains(HashOf(rank, name));
}

std::vector<Refusals::File> Refusals::Release() {
  std::vector<File> released;
  released.reserve(files_.size());
  for (const auto& [hash, file] : files_) released.push_back(file);
  files_.clear();
  held_ = {};
  return released;
}

}  // namespace kvshelf::sweep
