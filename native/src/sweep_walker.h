// A thread of a sweep: what it shares with others, and how it keeps out of the way of loads.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "sweep_folders.h"
#include "sweep_parts.h"
#include "sweep_refusals.h"
#include "sweep_tree.h"

namespace kvshelf::sweep {

// A thread of a sweep runs for so long and rests for so long: a load of a chunk takes milliseconds.
// The longer rest is for a machine on which all processors have other work: four threads then ask
// for the time of one processor, together.
inline constexpr std::chrono::microseconds kBurst{500};
inline constexpr std::chrono::microseconds kRest{100};
inline constexpr std::chrono::microseconds kBusyRest{2000};
// `others`: threads that run or want to, but for those of the sweep.
constexpr std::chrono::microseconds RestFor(int others, int processors) {
  return others >= processors ? kBusyRest : kRest;
}
// Threads of this machine that run or want to; 0 if the system does not say (proc_loadavg(5)).
int RunnableThreads();
std::chrono::nanoseconds ThreadTime();  // that this thread has run on a processor

// What a thread has worked without a rest. The kernel gives even the lowest priority its share of a
// processor, by the tick (4 ms at 250 Hz), and a load that waits then takes twice its time. A
// thread that rests earlier is out of the way: others wait for a burst at most.
class Burst {
 public:
  // `awake` counts the sweep's threads that do not rest.
  explicit Burst(std::atomic<int>& awake) : awake_(awake) { ++awake_; }
  ~Burst() { --awake_; }
  Burst(const Burst&) = delete;
  Burst& operator=(const Burst&) = delete;
  // Rests if the thread has run for long enough; while it waits for storage it does not run.
  void RestIfDue();

 private:
  std::atomic<int>& awake_;
  std::chrono::nanoseconds began_ = ThreadTime();
  Clock::time_point look_at_ = Clock::now() + kBurst;
};

struct Parts {
  Parts(std::shared_ptr<FileOps> file_ops, const std::string& root, const SweepConfig& limits,
        Junk no_data);

  // Of the last scan of all; null if there was none, or the namespace is newer.
  Histograms* HistogramsOf(std::size_t name_space) SWEEP_LOCKED;
  // Forgets a namespace that is gone, with its histogram.
  void Forget(std::size_t name_space);
  // Runs `body` on threads of low priority, as many as so many items are worth.
  void RunThreads(std::size_t items, const std::function<void()>& body) const;

  const std::shared_ptr<FileOps> ops;
  SweepConfig config;
  const Junk junk;
  FileClock clock;
  std::mutex mutex;
  Folders folders;
  Tree tree;
  Refusals refusals;
  std::atomic<bool> stop{false};
  std::atomic<int> awake{0};                   // threads of a walk that do not rest
  std::unique_ptr<Pass> complete;              // the last scan of all
  double next_file_seconds SWEEP_GUARDED = 0;  // when the rate allows the next file
};

// What all walks do. One object a thread.
class Walker {
 public:
  Walker(Parts& parts, Walk& walk) : parts_(parts), walk_(walk), burst_(parts.awake) {}

 protected:
  // Whether to take nothing more. The first is not refused for lack of time, so that each call
  // gets on.
  bool IsOver(bool first) const SWEEP_LOCKED;
  // Waits until the rate allows the next file; false if all is to stop.
  bool Pace();
  void RestIfDue() { burst_.RestIfDue(); }

  // Counts what is neither a chunk nor junk.
  void NoteUnknown(Foreign& foreign, const std::string& path) const;
  // Whether there is no folder of ours under that name; else it is one that cannot be looked into.
  bool NoteUnopened(const std::string& path, int error);
  void NoteFault(int error);
  // Whether what is known of a leaf folder is all that the pass wants.
  bool NeedsNoList(const Rank& rank, const Leaf& leaf, const struct stat& status) const;

  // Whether a call has removed enough.
  bool HasEnough() const SWEEP_LOCKED;
  // Takes a file off what is needed, or (-1) gives it back.
  void Meet(std::int64_t files, std::int64_t bytes) SWEEP_LOCKED;
  // 0, -ENOENT if another was faster (its removal meets the need as well), or -errno.
  int RemoveFile(Rank& rank, int folder, const std::string& leaf, const std::string& name,
                 const struct stat& file);

  Parts& parts_;
  Walk& walk_;

 private:
  Burst burst_;
};

}  // namespace kvshelf::sweep
