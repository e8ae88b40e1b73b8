#include "job_table.h"

#include <stdexcept>
#include <string>

namespace kvshelf {

void JobTable::Add(const std::shared_ptr<Job>& job) {
  if (!jobs_.emplace(job->id, job).second) {
    throw std::invalid_argument("job id " + std::to_string(job->id) + " is in use");
  }
  job->submitted = Clock::now();
  ++unfinished_;
}

std::uint64_t& JobTable::queued(JobKind kind) {
  switch (kind) {
    case JobKind::kStore:
      return queued_stores_;
    case JobKind::kLoad:
      return queued_loads_;
    case JobKind::kLookup:
    case JobKind::kProbe:
      break;
  }
  return queued_lookups_;
}

void JobTable::LeaveQueue(Job& job, std::size_t index) {
  KVSHELF_DCHECK(EngineLock::IsHeld());
  KVSHELF_DCHECK(index < job.size());
  if (job.progress.states[index] != FileState::kQueued) return;
  job.progress.states[index] = FileState::kRunning;
  KVSHELF_DCHECK(queued(job.kind) > 0);
  --queued(job.kind);
}

void JobTable::MarkTaken(Job& job, std::size_t index) {
  JobProgress& progress = job.progress;
  const FileState state = progress.states[index];
  if (state == FileState::kTaken || state == FileState::kSettled) return;
  KVSHELF_DCHECK(job.kind == JobKind::kStore);
  KVSHELF_DCHECK(progress.holding > 0);
  LeaveQueue(job, index);
  progress.states[index] = FileState::kTaken;
  progress.taken[index] = true;
  progress.taken_bytes += job.transfers[index].request.payload_bytes();
  --progress.holding;
  ReportIfDue(job);
}

void JobTable::Settle(Job& job, std::size_t index, FileResult result, std::uint64_t bytes) {
  JobProgress& progress = job.progress;
  const FileState before = progress.states[index];
  if (before == FileState::kSettled) return;
  KVSHELF_DCHECK(progress.unsettled > 0);
  KVSHELF_DCHECK(!progress.finished);
  KVSHELF_DCHECK(before == FileState::kTaken || progress.holding > 0);
  KVSHELF_DCHECK(bytes == 0 || result.ok() || job.kind == JobKind::kProbe);
  LeaveQueue(job, index);
  progress.states[index] = FileState::kSettled;
  progress.statuses[index] = result.status;
  progress.errnos[index] = result.error;
  progress.any_error |= result.error != 0;
  progress.payload_bytes += bytes;
  if (before != FileState::kTaken) {
    progress.taken[index] = result.ok();
    progress.taken_bytes += bytes;
    --progress.holding;
  }
  --progress.unsettled;
  if (job.kind == JobKind::kStore) stores_.DropStaged(job.transfers[index]);
  ReportIfDue(job);
}

void JobTable::CancelQueued(Job& job) {
  for (std::size_t i = 0; i < job.size(); ++i) {
    if (job.progress.states[i] != FileState::kQueued) continue;
    Settle(job, i, {FileStatus::kCancelled, 0}, 0);
  }
}

// Revokes first, settles afterwards: once a status is out, block memory is safe. A store whose
// bytes were taken in the meantime is not dropped for taking too long.
void JobTable::GiveUp(EngineLock& lock, const std::shared_ptr<Job>& job,
                      std::vector<std::size_t> files, FileStatus status) {
  if (job == nullptr) return;
  if (IsTransfer(job->kind)) {
    lock.unlock();
    std::erase_if(files, [&](std::size_t i) {
      CopyGate& gate = job->transfers[i].gate;
      if (status == FileStatus::kDropped) return !gate.RevokeUnlessTaken();
      gate.Revoke();
      return false;
    });
    lock.lock();
  }
  for (const std::size_t i : files) Settle(*job, i, {status, 0}, 0);
}

void JobTable::GiveUpUnsettled(EngineLock& lock, const std::shared_ptr<Job>& job,
                               FileStatus status) {
  std::vector<std::size_t> files;
  for (std::size_t i = 0; i < job->size(); ++i) {
    if (job->progress.states[i] != FileState::kSettled) files.push_back(i);
  }
  GiveUp(lock, job, std::move(files), status);
}

void JobTable::ReportIfDue(Job& job) {
  JobProgress& progress = job.progress;
  if (job.kind == JobKind::kStore && progress.holding == 0 && !progress.released &&
      (write_behind_ || progress.let_go || progress.unsettled == 0)) {
    progress.released = true;
    PushReport(job, Phase::kReleased);
  }
  if (progress.unsettled == 0 && !progress.finished) {
    progress.finished = true;
    KVSHELF_DCHECK(unfinished_ > 0);
    --unfinished_;
    PushReport(job, Phase::kFinished);
  }
}

void JobTable::PushReport(Job& job, Phase phase) {
  const JobProgress& progress = job.progress;
  Report report;
  report.job_id = job.id;
  report.kind = job.kind;
  report.phase = phase;
  report.statuses = progress.statuses;
  if (progress.any_error) report.errnos = progress.errnos;
  if (phase == Phase::kReleased) {
    for (std::size_t i = 0; i < job.size(); ++i) {
      if (!progress.taken[i]) continue;
      report.statuses[i] = FileStatus::kOk;
      if (progress.any_error) report.errnos[i] = 0;
    }
  }
  report.payload_bytes = phase == Phase::kReleased ? progress.taken_bytes : progress.payload_bytes;
  report.seconds = Seconds(Clock::now() - job.submitted).count();
  reports_.push_back(std::move(report));
  has_reports_.store(true, std::memory_order_release);
  wake_.changed.notify_all();
}

std::vector<Report> JobTable::TakeReports(std::vector<std::shared_ptr<Job>>& done) {
  std::vector<Report> reports;
  reports.swap(reports_);
  has_reports_.store(false, std::memory_order_release);
  for (const Report& report : reports) {
    if (report.phase != Phase::kFinished) continue;
    const auto job = jobs_.find(report.job_id);
    KVSHELF_DCHECK(job != jobs_.end() && job->second->progress.unsettled == 0);
    done.push_back(std::move(job->second));
    jobs_.erase(job);
  }
  return reports;
}

bool JobTable::HasReached(JobId id, Phase phase) const {
  const auto job = jobs_.find(id);
  if (job == jobs_.end() || job->second->progress.finished) return true;
  return phase == Phase::kReleased && job->second->progress.released;
}

std::vector<std::shared_ptr<Job>> JobTable::All() const {
  std::vector<std::shared_ptr<Job>> all;
  for (const auto& [id, job] : jobs_) all.push_back(job);
  return all;
}

std::vector<std::shared_ptr<Job>> JobTable::Unfinished(std::span<const JobId> ids) const {
  std::vector<std::shared_ptr<Job>> found;
  for (const JobId id : ids) {
    const auto job = jobs_.find(id);
    if (job != jobs_.end() && !job->second->progress.finished) found.push_back(job->second);
  }
  return found;
}

void JobTable::AddTo(EngineStats& stats) const {
  stats.queued_stores = queued_stores_;
  stats.queued_loads = queued_loads_;
  stats.queued_lookups = queued_lookups_;
}

}  // namespace kvshelf
