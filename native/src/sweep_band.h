// Removes files of a pass's band, as many as are needed.
#pragma once

#include "sweep_walker.h"

namespace kvshelf::sweep {

class BandWalker : public Walker {
 public:
  using Walker::Walker;
  void Run();

 private:
  // Looks at the file once more: since the walk it may have been used, or removed by another, which
  // meets the need as well. False if it stays.
  bool Remove(const Candidate& candidate);
};

}  // namespace kvshelf::sweep
