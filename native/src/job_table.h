// The jobs that were submitted and not yet reported, and what becomes of their files.
#pragma once

#include <atomic>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "job.h"
#include "store_queue.h"
#include "wakeups.h"

namespace kvshelf {

// The engine's mutex guards it, but for has_reports. A file goes from state to state here alone:
// kQueued -> kRunning -> (kTaken ->) kSettled, and the first to settle it decides its status.
class JobTable {
 public:
  JobTable(bool write_behind, StoreQueue& stores, Wakeups& wake)
      : write_behind_(write_behind), stores_(stores), wake_(wake) {}

  // Throws std::invalid_argument if its id is in use. Its files count as queued.
  void Add(const std::shared_ptr<Job>& job) ENGINE_LOCKED;
  std::uint64_t& queued(JobKind kind) ENGINE_LOCKED;  // files of that kind

  void LeaveQueue(Job& job, std::size_t index) ENGINE_LOCKED;  // kQueued -> kRunning
  void MarkTaken(Job& job, std::size_t index) ENGINE_LOCKED;   // kTaken, unless it is settled
  void Settle(Job& job, std::size_t index, FileResult result, std::uint64_t bytes) ENGINE_LOCKED;
  void Settle(Transfer& file, FileResult result, std::uint64_t bytes = 0) ENGINE_LOCKED {
    Settle(*file.job, file.index, result, bytes);
  }
  void CancelQueued(Job& job) ENGINE_LOCKED;
  // Let go of the mutex while they revoke the gates of the files.
  void GiveUp(EngineLock& lock ENGINE_LOCKED, const std::shared_ptr<Job>& job,
              std::vector<std::size_t> files, FileStatus status);
  void GiveUpUnsettled(EngineLock& lock ENGINE_LOCKED, const std::shared_ptr<Job>& job,
                       FileStatus status);
  // Reports what is due: settling does, and so must whoever changes Job::let_go.
  void ReportIfDue(Job& job) ENGINE_LOCKED;

  bool has_reports() const { return has_reports_.load(std::memory_order_acquire); }
  // All reports. `done` gets the jobs that are finished with them, to be freed without the mutex.
  std::vector<Report> TakeReports(std::vector<std::shared_ptr<Job>>& done) ENGINE_LOCKED;
  bool HasReached(JobId id, Phase phase) const ENGINE_LOCKED;
  bool AllFinished() const ENGINE_LOCKED { return unfinished_ == 0; }
  std::vector<std::shared_ptr<Job>> All() const ENGINE_LOCKED;
  std::vector<std::shared_ptr<Job>> Unfinished(std::span<const JobId> ids) const ENGINE_LOCKED;
  void AddTo(EngineStats& stats) const ENGINE_LOCKED;

 private:
  void PushReport(Job& job, Phase phase) ENGINE_LOCKED;

  const bool write_behind_;
  StoreQueue& stores_;
  Wakeups& wake_;
  std::unordered_map<JobId, std::shared_ptr<Job>> jobs_ ENGINE_GUARDED;
  std::size_t unfinished_ ENGINE_GUARDED = 0;
  std::uint64_t queued_stores_ ENGINE_GUARDED = 0;
  std::uint64_t queued_loads_ ENGINE_GUARDED = 0;
  std::uint64_t queued_lookups_ ENGINE_GUARDED = 0;
  std::vector<Report> reports_ ENGINE_GUARDED;
  std::atomic<bool> has_reports_{false};
};

}  // namespace kvshelf
