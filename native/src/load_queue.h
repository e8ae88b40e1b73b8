// The order in which waiting loads are read.
#pragma once

#include <algorithm>
#include <deque>
#include <list>

#include "job.h"

namespace kvshelf {

// Parts of loads, job by job. The job with the least left goes first: short loads do not wait for
// long ones, and of equal ones the one that was begun ends first. Every fourth part is of the
// oldest job, so that a long one ends too, however many short ones come.
// (Shortest remaining processing time: Schrage, "A proof of the optimality of the shortest
// remaining processing time discipline", Operations Research 16, 1968.)
// Not thread-safe; the engine's mutex guards it.
class LoadQueue {
 public:
  // Parts of one job come one after the other.
  void Push(LoadPart part) {
    KVSHELF_DCHECK(part.begin < part.end);
    const Job* job = part.file->job;
    if (jobs_.empty() || jobs_.back().job != job) jobs_.push_back({job, {}, 0});
    jobs_.back().bytes += part.end - part.begin;
    jobs_.back().parts.push_back(std::move(part));
    ++parts_;
  }

  bool empty() const { return parts_ == 0; }
  std::size_t size() const { return parts_; }

  // REQUIRES: not empty.
  LoadPart Pop() {
    KVSHELF_DCHECK(parts_ > 0 && !jobs_.empty());
    const auto chosen = turn_++ % kOldestEvery == 0
                            ? jobs_.begin()
                            : std::min_element(jobs_.begin(), jobs_.end(),
                                               [](const Waiting& left, const Waiting& right) {
                                                 return left.bytes < right.bytes;
                                               });
    LoadPart part = std::move(chosen->parts.front());
    chosen->parts.pop_front();
    KVSHELF_DCHECK(chosen->bytes >= part.end - part.begin);
    chosen->bytes -= part.end - part.begin;
    if (chosen->parts.empty()) jobs_.erase(chosen);
    --parts_;
    return part;
  }

  // Forgets jobs of which nothing is left to do.
  void DropFinished() ENGINE_LOCKED {
    std::erase_if(jobs_, [&](const Waiting& waiting) ENGINE_LOCKED {
      if (waiting.job->progress.unsettled > 0) return false;
      KVSHELF_DCHECK(parts_ >= waiting.parts.size());
      parts_ -= waiting.parts.size();
      return true;
    });
  }

 private:
  static constexpr std::size_t kOldestEvery = 4;

  struct Waiting {
    const Job* job;  // kept alive by its parts
    std::deque<LoadPart> parts;
    std::uint64_t bytes;  // in `parts`
  };

  std::list<Waiting> jobs_;  // the oldest first
  std::size_t parts_ = 0;
  std::size_t turn_ = 1;
};

}  // namespace kvshelf
