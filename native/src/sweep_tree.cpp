#include "sweep_tree.h"

namespace kvshelf::sweep {

void Tree::List(const std::vector<std::string>& folders) {
  for (NamespaceState& known : states_) known.listed = false;
  for (const std::string& folder : folders) {
    const auto [at, is_new] = index_.try_emplace(folder, states_.size());
    if (is_new) {
      states_.push_back({folder, true, {}, 0});
      spaces_.emplace_back();
    }
    states_[at->second].listed = true;
  }
}

std::string Tree::PathOf(const Rank& rank) const {
  return states_[rank.name_space].folder + "/" + RankName(rank.number);
}

void Tree::MatchRanks(std::size_t index, const std::vector<std::uint32_t>& numbers) {
  std::vector<std::unique_ptr<Rank>>& ranks = spaces_[index].ranks;
  std::vector<std::unique_ptr<Rank>> now;
  auto known = ranks.begin();
  for (const std::uint32_t number : numbers) {
    while (known != ranks.end() && (*known)->number < number) Forget(**known++);
    if (known != ranks.end() && (*known)->number == number) {
      now.push_back(std::move(*known++));
      continue;
    }
    now.push_back(std::make_unique<Rank>());
    now.back()->name_space = index;
    now.back()->number = number;
  }
  while (known != ranks.end()) Forget(**known++);
  ranks = std::move(now);
}

void Tree::MatchLeaves(Rank& rank, const std::vector<std::uint16_t>& there) {
  std::vector<Leaf> now;
  now.reserve(there.size());
  auto known = rank.leaves.begin();
  for (const std::uint16_t index : there) {
    while (known != rank.leaves.end() && known->index < index) Forget(rank, *known++);
    const bool is_known = known != rank.leaves.end() && known->index == index;
    now.push_back(is_known ? *known++ : Leaf{});
    now.back().index = index;
  }
  while (known != rank.leaves.end()) Forget(rank, *known++);
  rank.leaves = std::move(now);
}

void Tree::Forget(const Rank& rank, Leaf& leaf) {
  Amount& amount = StateOf(rank).amount;
  amount.files -= leaf.amount.files;
  amount.bytes -= leaf.amount.bytes;
  const std::uint16_t index = leaf.index;
  leaf = {};
  leaf.index = index;
}

void Tree::Forget(Rank& rank) {
  for (Leaf& leaf : rank.leaves) Forget(rank, leaf);
}

void Tree::Forget(std::size_t index) {
  for (const std::unique_ptr<Rank>& rank : spaces_[index].ranks) Forget(*rank);
  spaces_[index] = {};
}

}  // namespace kvshelf::sweep
