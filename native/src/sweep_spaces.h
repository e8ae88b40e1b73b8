// Opens the namespaces and ranks of a pass, and lists those that have changed.
#pragma once

#include <string>
#include <vector>

#include "sweep_walker.h"

namespace kvshelf::sweep {

class SpaceWalker : public Walker {
 public:
  using Walker::Walker;
  void Run();

 private:
  void OpenSpace(std::size_t index);
  void MatchRanks(std::size_t index, const std::vector<std::string>& names);
  void OpenRank(int space, Rank& rank);
  void MatchLeaves(Rank& rank, const std::vector<std::string>& names);
};

// Opens the namespaces that are left; whether all are.
bool OpenSpaces(Parts& parts, Walk& walk);

}  // namespace kvshelf::sweep
