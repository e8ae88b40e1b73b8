// What becomes of files and jobs. Every function here is called with mutex_ held.
#include <algorithm>
#include <cerrno>
#include <new>

#include "engine_core.h"

namespace kvshelf {

bool EngineCore::Settled(const Transfer& file) const {
  return file.job->states[file.index] == FileState::kSettled;
}

// Settled, or about to be by whoever revoked the gate.
bool EngineCore::GivenUp(const Transfer& file) const {
  return file.gate.revoked() || Settled(file);
}

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
  if (job.kind == JobKind::kStore) DropStaging(job.transfers[index]);
  ReportIfDue(job);
}

// Frees what a settled write-behind file still has in staging. A temp file is left to an I/O
// thread: removing it is a system call, and the caller may be anybody.
void EngineCore::DropStaging(Transfer& file) {
  if (!config_.write_behind) return;
  while (file.has_ready()) {
    ReturnBuffer(std::move(file.ready().front().buffer));
    file.ready().pop_front();
  }
  if (file.writer != nullptr && !file.active) {
    leftovers_.push_back(std::move(file.writer));
    io_work_.notify_one();
  }
  copy_work_.notify_all();  // a copier may wait for a buffer for this very file
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
  changed_.notify_all();
}

bool EngineCore::BufferAvailable() const {
  return !free_buffers_.empty() || buffers_made_ < buffers_max_;
}

// An empty buffer if there is none. The buffer used last is taken first: it may still be in cache,
// and memory that was never needed is never touched. Making one, pinned for a GPU, takes
// milliseconds, in which poll() and submissions must not wait for the lock; so whatever the caller
// knew may have changed afterwards.
StagingBuffer EngineCore::TakeBuffer(EngineLock& lock) {
  if (!free_buffers_.empty()) {
    StagingBuffer buffer = std::move(free_buffers_.back());
    free_buffers_.pop_back();
    return buffer;
  }
  if (!BufferAvailable()) return {};
  ++buffers_made_;  // before it is: others must not make more than there may be
  lock.unlock();
  StagingBuffer buffer;
  try {
    buffer = device_->AllocateStaging(RoundUpToPage(config_.piece_bytes));
  } catch (const std::bad_alloc&) {
    // An empty one says so.
  }
  lock.lock();
  if (!buffer) {
    // Go on with what there is; with none, each store tries again, and is dropped.
    buffers_max_ = std::max<std::size_t>(1, --buffers_made_);
    copy_work_.notify_all();  // for whom there was no buffer while this one counted
  }
  return buffer;
}

void EngineCore::ReturnBuffer(StagingBuffer buffer) {
  if (!buffer) return;
  free_buffers_.push_back(std::move(buffer));
  copy_work_.notify_all();
}

}  // namespace kvshelf
