// Jobs and their files, as the engine's threads see them.
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "engine_lock.h"
#include "kvshelf/chunk_io.h"
#include "kvshelf/engine.h"
#include "kvshelf/layout.h"

namespace kvshelf {

// A part of a payload in staging memory, to be written.
struct StagedPart {
  StagingBuffer buffer;
  std::uint64_t bytes = 0;  // in the buffer: fewer than of the payload if it is packed
  std::uint64_t payload_bytes = 0;
};

inline bool IsTransfer(JobKind kind) { return kind == JobKind::kStore || kind == JobKind::kLoad; }

struct Job;

// One chunk file that is stored or loaded. What is not guarded is fixed once submitted.
struct Transfer {
  Job* job = nullptr;  // a shared_ptr<Transfer> keeps its job alive
  std::size_t index = 0;
  ChunkRequest request;
  std::uint32_t group = 0;
  CopyGate gate;
  std::size_t parts_left ENGINE_GUARDED = 0;  // of a load: queued or under way

  // Write-behind only.
  std::deque<StagedPart>& ready() ENGINE_LOCKED {
    if (ready_ == nullptr) ready_ = std::make_unique<std::deque<StagedPart>>();
    return *ready_;
  }
  bool has_ready() const ENGINE_LOCKED { return ready_ != nullptr && !ready_->empty(); }
  std::uint64_t copied_bytes ENGINE_GUARDED = 0;  // of the payload, out of block memory
  std::unique_ptr<PieceHasher> hasher;   // its copier's; the writer's once all parts are ready
  bool active ENGINE_GUARDED = false;    // an I/O thread has it, and with it `writer`
  bool in_queue ENGINE_GUARDED = false;  // waits in a StoreQueue
  std::unique_ptr<ChunkWriter> writer ENGINE_GUARDED;  // not destroyed but by an I/O thread

 private:
  // Made on use: an empty deque has a heap block.
  std::unique_ptr<std::deque<StagedPart>> ready_ ENGINE_GUARDED;
};

// Bytes [begin, end) of a load's payload: what one thread reads at a time.
struct LoadPart {
  std::shared_ptr<Transfer> file;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

enum class FileState : std::uint8_t {
  kQueued,   // no thread has begun it
  kRunning,  // a thread has it or had it
  kTaken,    // a store that needs block memory no more
  kSettled,  // its status is final
};

// What a lookup or a probe asks for. Fixed at submission, but for `first_missing`.
struct LookupRequest {
  std::vector<std::string> paths;
  // Or, for lookups by key: each key in each folder, key after key.
  std::vector<std::string> folders;
  std::vector<std::string> keys;
  std::vector<std::uint32_t> run_ends;  // of keys; beyond the last, every key counts for itself
  // Of each run: the first key known to be missing.
  std::unique_ptr<std::atomic<std::uint32_t>[]> first_missing;
  std::uint64_t probe_bytes = 0;  // of a probe

  std::string PathOf(std::size_t index) const {
    if (folders.empty()) return paths[index];
    return ChunkPath(folders[index % folders.size()], keys[index / folders.size()]);
  }
};

// What has become of a job's files. JobTable alone changes it, but for `let_go`.
struct JobProgress {
  explicit JobProgress(std::size_t files)
      : states(files, FileState::kQueued),
        statuses(files, FileStatus::kOk),
        errnos(files, 0),
        taken(files, false),
        unsettled(files),
        holding(files) {}

  std::vector<FileState> states;
  std::vector<FileStatus> statuses;
  std::vector<int> errnos;
  std::vector<bool> taken;          // the bytes, whatever came after
  std::size_t unsettled;            // files
  std::size_t holding;              // files that may still need block memory
  bool any_error = false;           // an errno is not 0
  bool let_go = false;              // release() was called
  bool released = false;            // reported
  bool finished = false;            // reported
  std::uint64_t payload_bytes = 0;  // of files that are OK
  std::uint64_t taken_bytes = 0;    // likewise, for RELEASED
};

// What is not guarded is fixed at submission.
struct Job {
  Job(JobKind job_kind, JobId job_id, std::size_t files)
      : kind(job_kind),
        id(job_id),
        file_count(files),
        transfers(IsTransfer(job_kind) ? files : 0),
        progress(files) {}

  std::size_t size() const { return file_count; }

  const JobKind kind;
  const JobId id;
  const std::size_t file_count;
  TimePoint submitted;
  std::shared_ptr<void> after;  // copies wait for this event of the device
  LookupRequest lookup;
  std::vector<std::int32_t> block_ids;
  std::vector<Transfer> transfers;  // stores and loads; never resized, threads point into it
  JobProgress progress ENGINE_GUARDED;
};

// Of a file; the latter also if whoever revoked the gate is about to settle it.
inline bool IsSettled(const Transfer& file) ENGINE_LOCKED {
  return file.job->progress.states[file.index] == FileState::kSettled;
}
inline bool IsGivenUp(const Transfer& file) ENGINE_LOCKED {
  return file.gate.revoked() || IsSettled(file);
}

// Makes the thread's copies come after the work that the caller had queued at submission: the
// kernels that compute the blocks of a store, or that clear those of a load.
inline bool AwaitEvent(const Transfer& file, ThreadContext& context) {
  return context.stream->After(file.job->after.get());
}

inline std::shared_ptr<Transfer> Ref(const std::shared_ptr<Job>& job, std::size_t index) {
  return {job, &job->transfers[index]};
}
inline std::shared_ptr<Job> JobOf(const std::shared_ptr<Transfer>& file) {
  return {file, file->job};
}

}  // namespace kvshelf
