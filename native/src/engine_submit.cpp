// Calls of the engine's users: submission, results and control.
#include <algorithm>
#include <cerrno>
#include <stdexcept>

#include "engine_core.h"

namespace kvshelf {
namespace {

[[noreturn]] void Refuse(std::size_t row, const std::string& what) {
  throw std::invalid_argument("row " + std::to_string(row) + ": " + what);
}

std::int32_t At(std::span<const std::int32_t> column, std::size_t row) { return column[row]; }

}  // namespace

void CheckPath(std::size_t row, const std::string& path) {
  const std::string_view wrong = WhatIsWrongWithPath(path);
  if (!wrong.empty()) Refuse(row, "path " + std::string(wrong));
}

void EngineCore::CheckRow(JobKind kind, const Batch& batch, std::size_t row) const {
  CheckPath(row, batch.paths[row]);
  if (kind == JobKind::kStore && batch.paths[row].find('/') == std::string::npos) {
    Refuse(row, "path of a store needs a namespace folder");
  }
  const std::size_t key_bytes = batch.keys[row].size();
  if (key_bytes < kKeyBytesMin || key_bytes > kKeyBytesMax) {
    Refuse(row, "key must have 12 to 128 bytes, not " + std::to_string(key_bytes));
  }
  const std::int32_t group = At(batch.groups, row);
  if (group < 0 || static_cast<std::size_t>(group) >= groups_.size()) {
    Refuse(row, "group " + std::to_string(group) + " is out of range");
  }
  const std::int32_t first = At(batch.first_blocks, row);
  const std::int32_t count = At(batch.block_counts, row);
  if (first < 0) Refuse(row, "first block is negative");
  if (count < 1) Refuse(row, "block count must be at least 1");
  const std::uint64_t block_bytes = groups_[static_cast<std::size_t>(group)].block_bytes();
  const std::uint64_t piece_bytes =
      PieceBytesFor(block_bytes, static_cast<std::uint32_t>(config_.piece_bytes));
  const std::uint64_t pieces_max = PieceCountMax(auth_key_.has_value());
  if (kind == JobKind::kStore &&
      static_cast<std::uint64_t>(count) > pieces_max * piece_bytes / block_bytes) {
    Refuse(row, "needs more than " + std::to_string(pieces_max) +
                    " pieces; piece_bytes is too small for such chunks");
  }
}

void EngineCore::CheckBatch(JobKind kind, const Batch& batch) const {
  const std::size_t rows = batch.paths.size();
  if (rows == 0) throw std::invalid_argument("a batch needs at least one row");
  if (batch.keys.size() != rows || batch.groups.size() != rows ||
      batch.first_blocks.size() != rows || batch.block_counts.size() != rows) {
    throw std::invalid_argument("columns have different lengths");
  }
  std::uint64_t next_id = 0;
  for (std::size_t row = 0; row < rows; ++row) {
    CheckRow(kind, batch, row);
    const auto count = static_cast<std::uint64_t>(batch.block_counts[row]);
    // At once: a count further down may be negative and make the sum right again.
    if (count > batch.block_ids.size() - next_id) {
      Refuse(row, "block_counts add up to more than block_ids has");
    }
    const auto num_blocks = static_cast<std::int64_t>(
        groups_[static_cast<std::size_t>(batch.groups[row])].num_blocks());
    for (const std::int32_t id : batch.block_ids.subspan(next_id, count)) {
      if (id < 0 || id >= num_blocks) {
        Refuse(row, "block id " + std::to_string(id) + " is out of range");
      }
    }
    next_id += count;
  }
  if (next_id != batch.block_ids.size()) {
    throw std::invalid_argument("block_ids has " + std::to_string(batch.block_ids.size()) +
                                " entries, block_counts add up to " + std::to_string(next_id));
  }
}

std::shared_ptr<Job> EngineCore::MakeJob(JobKind kind, JobId id, const Batch& batch,
                                         std::size_t rows) const {
  auto job = std::make_shared<Job>(kind, id, rows);
  job->block_ids.assign(batch.block_ids.begin(), batch.block_ids.end());
  std::size_t next_id = 0;
  for (std::size_t row = 0; row < job->transfers.size(); ++row) {
    Transfer& file = job->transfers[row];
    const auto count = static_cast<std::size_t>(batch.block_counts[row]);
    file.job = job.get();
    file.index = row;
    file.group = static_cast<std::uint32_t>(batch.groups[row]);
    file.request.path = batch.paths[row];
    file.request.key = batch.keys[row];
    file.request.memory = &groups_[file.group];
    file.request.first_block = static_cast<std::uint32_t>(batch.first_blocks[row]);
    file.request.block_ids = std::span(job->block_ids).subspan(next_id, count);
    next_id += count;
  }
  return job;
}

void EngineCore::SubmitTransfers(JobKind kind, JobId id, const Batch& batch) {
  CheckBatch(kind, batch);
  const std::shared_ptr<Job> job = MakeJob(kind, id, batch, batch.paths.size());
  job->after = device_->RecordEvent(batch.stream);
  const EngineLock lock(mutex_);
  AddJob(job);
  if (kind == JobKind::kLoad) {
    EnqueueLoads(job);
  } else {
    EnqueueStores(job);
  }
}

void EngineCore::SubmitLookup(JobId id, std::vector<std::string> paths) {
  if (paths.empty()) throw std::invalid_argument("a lookup needs at least one path");
  for (std::size_t row = 0; row < paths.size(); ++row) CheckPath(row, paths[row]);
  const std::shared_ptr<Job> job = MakeJob(JobKind::kLookup, id, {}, paths.size());
  job->paths = std::move(paths);
  AddLookup(job);
}

// The lookup threads make the paths: for thousands of keys that is work, and the caller's thread
// is a scheduler's.
void EngineCore::SubmitLookupKeys(JobId id, std::vector<std::string> folders,
                                  std::vector<std::string> keys, std::vector<std::uint32_t> runs) {
  if (folders.empty() || keys.empty()) {
    throw std::invalid_argument("a lookup needs at least one folder and one key");
  }
  for (std::size_t row = 0; row < folders.size(); ++row) CheckPath(row, folders[row]);
  for (std::size_t row = 0; row < keys.size(); ++row) {
    if (keys[row].size() < kKeyBytesMin || keys[row].size() > kKeyBytesMax) {
      Refuse(row, "key must have 12 to 128 bytes");
    }
  }
  std::uint64_t end = 0;
  for (std::uint32_t& run : runs) {  // lengths become ends
    end += run;
    if (run == 0 || end > keys.size()) {
      throw std::invalid_argument("runs: each at least 1, together at most as many as keys");
    }
    run = static_cast<std::uint32_t>(end);
  }
  const std::shared_ptr<Job> job = MakeJob(JobKind::kLookup, id, {}, folders.size() * keys.size());
  job->folders = std::move(folders);
  job->keys = std::move(keys);
  job->run_ends = std::move(runs);
  job->first_missing = std::make_unique<std::atomic<std::uint32_t>[]>(job->run_ends.size());
  for (std::size_t run = 0; run < job->run_ends.size(); ++run) {
    job->first_missing[run] = std::numeric_limits<std::uint32_t>::max();
  }
  AddLookup(job);
}

void EngineCore::SubmitProbe(JobId id, std::vector<std::string> paths, std::uint64_t bytes_max) {
  if (paths.empty()) throw std::invalid_argument("a probe needs at least one path");
  for (std::size_t row = 0; row < paths.size(); ++row) CheckPath(row, paths[row]);
  const std::shared_ptr<Job> job = MakeJob(JobKind::kProbe, id, {}, paths.size());
  job->paths = std::move(paths);
  job->probe_bytes = bytes_max;
  AddLookup(job);
}

void EngineCore::AddLookup(const std::shared_ptr<Job>& job) {
  const EngineLock lock(mutex_);
  AddJob(job);
  std::uint64_t& queued = jobs_.queued(job->kind);
  const std::uint64_t room = config_.queue_files - std::min(config_.queue_files, queued);
  queued += job->size();
  for (std::size_t i = room; i < job->size(); ++i) {
    jobs_.Settle(*job, i, FileResult::IoError(EAGAIN), 0);
  }
  lookups_.Add(job);
  deadlines_.Add(DeadlineKind::kLookup,
                 {job->submitted + ToDuration(config_.lookup_timeout_seconds), job});
}

void EngineCore::AddJob(const std::shared_ptr<Job>& job) {
  if (closed_) throw EngineClosed();
  jobs_.Add(job);
}

// In parts of two pieces, so that all threads share the work of one request, and of one file. A
// file may have been stored in pieces of another size: ChunkReader says what a part is then.
void EngineCore::EnqueueParts(const TransferRef& file) {
  const ChunkRequest& request = file->request;
  const std::uint64_t payload = request.payload_bytes();
  const std::uint64_t block_bytes = request.memory->block_bytes();
  const std::uint64_t part_bytes =
      2ull * PieceBytesFor(block_bytes, static_cast<std::uint32_t>(config_.piece_bytes));
  std::uint64_t begin = 0;
  // The first part ends where a piece of the file does.
  std::uint64_t end = part_bytes - request.first_block * block_bytes % part_bytes;
  while (begin < payload) {
    end = std::min(end, payload);
    loads_.Push({file, begin, end});
    ++file->parts_left;
    begin = end;
    end += part_bytes;
  }
}

void EngineCore::EnqueueLoads(const std::shared_ptr<Job>& job) {
  loads_.DropFinished();
  for (std::size_t i = 0; i < job->size(); ++i) {
    if (++jobs_.queued(job->kind) > config_.queue_files) {
      jobs_.Settle(*job, i, FileResult::IoError(EAGAIN), 0);
    } else if (!workers_.AnybodyLoads()) {
      jobs_.Settle(*job, i, {FileStatus::kTimedOut, 0}, 0);
    } else {
      EnqueueParts(Ref(job, i));
    }
  }
  deadlines_.Add(DeadlineKind::kLoad,
                 {job->submitted + ToDuration(config_.load_timeout_seconds), job});
  if (loads_.size() == 1) {
    wake_.io.notify_one();
    wake_.load.notify_one();
  } else {
    wake_.io.notify_all();
    wake_.load.notify_all();
  }
}

void EngineCore::EnqueueStores(const std::shared_ptr<Job>& job) {
  stores_.DropSettled();
  for (std::size_t i = 0; i < job->size(); ++i) {
    if (++jobs_.queued(job->kind) > config_.queue_files) {
      jobs_.Settle(*job, i, {FileStatus::kDropped, 0}, 0);
    } else {
      stores_.Add(Ref(job, i));
    }
  }
  deadlines_.Add(DeadlineKind::kTake,
                 {job->submitted + ToDuration(config_.store_queue_seconds), job});
  if (config_.write_behind) lookups_.Add(job);  // chunks that exist need not be copied
  stores_.WakeThreads();
}

std::vector<Report> EngineCore::Poll() {
  if (!HasReports()) return {};
  std::vector<std::shared_ptr<Job>> done;  // freed after the lock
  const EngineLock lock(mutex_);
  std::vector<Report> reports = jobs_.TakeReports(done);
  lookups_.DropIdle(done);
  return reports;
}

bool EngineCore::Wait(std::span<const JobId> ids, Phase phase, double timeout_seconds) {
  const TimePoint deadline = Clock::now() + ToDuration(timeout_seconds);
  EngineLock lock(mutex_);
  return wake_.changed.wait_until(lock, deadline, [&] {
    return std::all_of(ids.begin(), ids.end(),
                       [&](JobId id) ENGINE_LOCKED { return jobs_.HasReached(id, phase); });
  });
}

void EngineCore::Release(std::span<const JobId> ids) {
  EngineLock lock(mutex_);
  for (const auto& job : jobs_.Unfinished(ids)) {
    if (job->kind != JobKind::kStore) continue;
    job->let_go = true;
    for (std::size_t i = 0; i < job->size(); ++i) {
      if (job->states[i] == FileState::kTaken || job->states[i] == FileState::kSettled) continue;
      lock.unlock();
      const bool dropped = job->transfers[i].gate.RevokeUnlessTaken();
      lock.lock();
      if (dropped) {
        jobs_.Settle(*job, i, {FileStatus::kDropped, 0}, 0);
      } else {
        jobs_.MarkTaken(*job, i);  // the last byte was taken just now
      }
    }
    jobs_.ReportIfDue(*job);
  }
}

void EngineCore::Cancel(std::span<const JobId> ids) {
  const EngineLock lock(mutex_);
  for (const auto& job : jobs_.Unfinished(ids)) jobs_.CancelQueued(*job);
}

bool EngineCore::Drain(double timeout_seconds) {
  const TimePoint deadline = Clock::now() + ToDuration(timeout_seconds);
  EngineLock lock(mutex_);
  return wake_.changed.wait_until(lock, deadline, [&]() ENGINE_LOCKED {
    return jobs_.AllFinished() && !lookups_.IsTouching();
  });
}

EngineStats EngineCore::Stats() const {
  const EngineLock lock(mutex_);
  EngineStats stats = stats_;
  stats.hung_threads = workers_.hung();
  jobs_.AddTo(stats);
  lookups_.AddTo(stats);
  stats.write_buffer_used_bytes = staging_.used_bytes();
  return stats;
}

}  // namespace kvshelf
