// What becomes of files and jobs. Every function here is called with mutex_ held.
#include <algorithm>
#include <cerrno>

#include "engine_core.h"

namespace kvshelf {

void EngineCore::LeaveQueue(Job& job, std::size_t index) {
  if (job.states[index] != FileState::kQueued) return;
  job.states[index] = FileState::kRunning;
  switch (job.kind) {
    case JobKind::kStore:
      --stats_.queued_stores;
      break;
    case JobKind::kLoad:
      --stats_.queued_loads;
      break;
    case JobKind::kLookup:
    case JobKind::kProbe:
      --stats_.queued_lookups;
      break;
  }
}

void EngineCore::MarkTaken(Job& job, std::size_t index) {
  const FileState state = job.states[index];
  if (state == FileState::kTaken || state == FileState::kSettled) return;
  LeaveQueue(job, index);
  job.states[index] = FileState::kTaken;
  job.taken[index] = true;
  job.taken_bytes += job.transfers[index].request.payload_bytes();
  --job.holding;
  ReportIfDue(job);
}

void EngineCore::Settle(Job& job, std::size_t index, FileResult result, std::uint64_t bytes) {
  const FileState before = job.states[index];
  if (before == FileState::kSettled) return;
  LeaveQueue(job, index);
  job.states[index] = FileState::kSettled;
  job.statuses[index] = result.status;
  job.errnos[index] = result.error;
  job.any_error |= result.error != 0;
  job.payload_bytes += bytes;
  if (before != FileState::kTaken) {
    job.taken[index] = result.ok();
    job.taken_bytes += bytes;
    --job.holding;
  }
  --job.unsettled;
  if (job.kind == JobKind::kStore) stores_.DropStaged(job.transfers[index]);
  ReportIfDue(job);
}

void EngineCore::ReportIfDue(Job& job) {
  if (job.kind == JobKind::kStore && job.holding == 0 && !job.released &&
      (config_.write_behind || job.let_go || job.unsettled == 0)) {
    job.released = true;
    PushReport(job, Phase::kReleased);
  }
  if (job.unsettled == 0 && !job.finished) {
    job.finished = true;
    --unfinished_jobs_;
    PushReport(job, Phase::kFinished);
  }
}

void EngineCore::PushReport(Job& job, Phase phase) {
  Report report;
  report.job_id = job.id;
  report.kind = job.kind;
  report.phase = phase;
  report.statuses = job.statuses;
  if (job.any_error) report.errnos = job.errnos;
  if (phase == Phase::kReleased) {
    for (std::size_t i = 0; i < job.size(); ++i) {
      if (!job.taken[i]) continue;
      report.statuses[i] = FileStatus::kOk;
      if (job.any_error) report.errnos[i] = 0;
    }
  }
  report.payload_bytes = phase == Phase::kReleased ? job.taken_bytes : job.payload_bytes;
  report.seconds = Seconds(Clock::now() - job.submitted).count();
  reports_.push_back(std::move(report));
  has_reports_.store(true, std::memory_order_release);
  wake_.changed.notify_all();
}

}  // namespace kvshelf
