// Chunk files whose removal was refused: they count, and nobody tries them again until Release.
#pragma once

#include <sys/stat.h>

#include <string>
#include <unordered_map>
#include <vector>

#include "sweep_parts.h"

namespace kvshelf::sweep {

class Refusals {
 public:
  // A file as the histogram had it.
  struct File {
    std::size_t name_space = 0;
    std::size_t use_class = 0;
    std::int64_t used_ns = 0;
    std::int64_t bytes = 0;
  };

  explicit Refusals(std::size_t files_max) : files_max_(files_max) {}

  // `path`: beneath the root.
  void Add(const Rank& rank, const std::string& path, const std::string& name,
           const struct stat& file, int error) SWEEP_LOCKED;
  bool Has(const Rank& rank, const std::string& name) const SWEEP_LOCKED;
  // Forgets and returns all.
  std::vector<File> Release() SWEEP_LOCKED;
  const Held& held() const { return held_; }

 private:
  const std::size_t files_max_;
  Held held_;
  std::unordered_map<std::uint64_t, File> files_ SWEEP_GUARDED;  // by a hash of rank and name
};

}  // namespace kvshelf::sweep
