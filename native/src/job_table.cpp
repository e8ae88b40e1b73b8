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
  if (job.states[index] != FileState::kQueued) return;
  job.states[index] = FileState::kRunning;
  KVSHELF_DCHECK(queued(job.kind) > 0);
  --queued(job.kind);
}

void JobTable::MarkTaken(Job& job, std::size_t index) {
  const FileState state = job.states[index];
  if (state == FileState::kTaken || state == FileState::kSettled) return;
  KVSHELF_DCHECK(job.kind == JobKind::kStore);
  KVSHELF_DCHECK(job.holding > 0);
  LeaveQueue(job, index);
  job.states[index] = FileState::kTaken;
  job.taken[index] = true;
  job.taken_bytes += job.transfers[index].request.payload_bytes();
  --job.holding;
  ReportIfDue(job);
}

void JobTable::Settle(Job& job, std::size_t index, FileResult result, std::uint64_t bytes) {
  const FileState before = job.states[index];
  if (before == FileState::kSettled) return;
  KVSHELF_DCHECK(job.unsettled > 0);
  KVSHELF_DCHECK(!job.finished);
  KVSHELF_DCHECK(before == FileState::kTaken || job.holding > 0);
  KVSHELF_DCHECK(bytes == 0 || result.ok());
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

void JobTable::CancelQueued(Job& job) {
  for (std::size_t i = 0; i < job.size(); ++i) {
    if (job.states[i] == FileState::kQueued) Settle(job, i, {FileStatus::kCancelled, 0}, 0);
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
    if (job->states[i] != FileState::kSettled) files.push_back(i);
  }
  GiveUp(lock, job, std::move(files), status);
}

void JobTable::ReportIfDue(Job& job) {
  if (job.kind == JobKind::kStore && job.holding == 0 && !job.released &&
      (write_behind_ || job.let_go || job.unsettled == 0)) {
    job.released = true;
    PushReport(job, Phase::kReleased);
  }
  if (job.unsettled == 0 && !job.finished) {
    job.finished = true;
    KVSHELF_DCHECK(unfinished_ > 0);
    --unfinished_;
    PushReport(job, Phase::kFinished);
  }
}

void JobTable::PushReport(Job& job, Phase phase) {
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

std::vector<Report> JobTable::TakeReports(std::vector<std::shared_ptr<Job>>& done) {
  std::vector<Report> reports;
  reports.swap(reports_);
  has_reports_.store(false, std::memory_order_release);
  for (const Report& report : reports) {
    if (report.phase != Phase::kFinished) continue;
    const auto job = jobs_.find(report.job_id);
    KVSHELF_DCHECK(job != jobs_.end() && job->second->unsettled == 0);
    done.push_back(std::move(job->second));
    jobs_.erase(job);
  }
  return reports;
}

bool JobTable::HasReached(JobId id, Phase phase) const {
  const auto job = jobs_.find(id);
  if (job == jobs_.end() || job->second->finished) return true;
  return phase == Phase::kReleased && job->second->released;
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
    if (job != jobs_.end() && !job->second->finished) found.push_back(job->second);
  }
  return found;
}

void JobTable::AddTo(EngineStats& stats) const {
  stats.queued_stores = queued_stores_;
  stats.queued_loads = queued_loads_;
  stats.queued_lookups = queued_lookups_;
}

}  // namespace kvshelf
