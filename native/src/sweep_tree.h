// The namespaces, ranks and leaf folders that a sweep knows, and how much lies in them.
#pragma once

#include <string>
#include <unordered_map>
#include <vector>

#include "sweep_parts.h"

namespace kvshelf::sweep {

class Tree {
 public:
  // The folders that are namespaces. Each keeps the index that it had first.
  void List(const std::vector<std::string>& folders);

  const std::vector<NamespaceState>& states() const { return states_; }
  NamespaceState& StateOf(const Rank& rank) { return states_[rank.name_space]; }
  Space& SpaceAt(std::size_t index) { return spaces_[index]; }
  std::string PathOf(const Rank& rank) const;

  // Makes what a folder holds, in order, what is known of it.
  void MatchRanks(std::size_t index, const std::vector<std::uint32_t>& numbers) SWEEP_LOCKED;
  void MatchLeaves(Rank& rank, const std::vector<std::uint16_t>& there) SWEEP_LOCKED;
  // Forget what is gone.
  void Forget(const Rank& rank, Leaf& leaf) SWEEP_LOCKED;
  void Forget(Rank& rank) SWEEP_LOCKED;
  void Forget(std::size_t index) SWEEP_LOCKED;

 private:
  std::vector<NamespaceState> states_;
  std::vector<Space> spaces_;                           // of each namespace
  std::unordered_map<std::string, std::size_t> index_;  // of each namespace's folder
};

}  // namespace kvshelf::sweep
