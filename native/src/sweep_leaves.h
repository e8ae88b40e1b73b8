// Walks the leaf folders of a pass: lists them, counts their chunks or judges which go.
#pragma once

#include <sys/stat.h>

#include <string>
#include <vector>

#include "sweep_walker.h"

namespace kvshelf::sweep {

class LeafWalker : public Walker {
 public:
  using Walker::Walker;
  void Run();

 private:
  // False if it was broken off and is to be walked again.
  bool WalkLeaf(Rank& rank, std::size_t position);
  // 0, kUnchanged if the names need not be known, or -errno.
  int ListLeaf(Rank& rank, Found& found, struct stat* status, std::vector<std::string>* names);
  // False if the walk is to be broken off.
  bool LookAt(Rank& rank, Found& found, const std::string& name);
  // Removes the file, remembers it or keeps it; false likewise.
  bool Judge(Rank& rank, Found& found, const std::string& name, const struct stat& file);
  bool IsHeld(const Rank& rank, const std::string& name);
  // Makes what was found in a folder what is known of it.
  void Commit(Rank& rank, Found& found, bool complete);
  void AddToBand(Found& found) SWEEP_LOCKED;
};

}  // namespace kvshelf::sweep
