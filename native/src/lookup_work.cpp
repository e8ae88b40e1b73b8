#include "lookup_work.h"

#include <fcntl.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <limits>
#include <new>
#include <stdexcept>

#include "batch.h"

namespace kvshelf {
namespace {

// A header and one page: nothing shorter is a chunk file.
constexpr off_t kChunkFileBytesMin = 2 * kPageBytes;
// A read() of a probe: what loads use on a device that copies on its own, or more than they use.
constexpr std::size_t kProbeStepBytes = 256 << 10;

// What is absent or no chunk file, however the file system says it, is no fault of the storage.
// ELOOP: a link, which loads do not follow either. ENXIO: a socket. ENAMETOOLONG: of the longest
// keys and group numbers; such a chunk cannot be stored either.
bool IsAbsent(int error) {
  return error == -ENOENT || error == -ENOTDIR || error == -ESTALE || error == -ELOOP ||
         error == -ENXIO || error == -ENAMETOOLONG;
}

FileResult LookUp(const RootDir& root, const std::string& path) {
  struct stat found{};
  const int error = root.StatBeneath(path, &found);
  if (IsAbsent(error)) return {FileStatus::kNotFound, 0};
  if (error < 0) return FileResult::IoError(-error);
  const bool chunk = S_ISREG(found.st_mode) && found.st_size >= kChunkFileBytesMin;
  return {chunk ? FileStatus::kOk : FileStatus::kNotFound, 0};
}

// Whether the file's times were renewed.
bool TouchOne(const RootDir& root, const TouchRequest& touch, const FileClock& clock,
              double interval_seconds) {
  struct stat found{};
  if (root.StatBeneath(touch.path, &found) < 0 || !S_ISREG(found.st_mode)) {
    return false;
  }
  const UseTime use = LastUse(found);
  const std::int64_t modified = Nanoseconds(found.st_mtim);
  const std::int64_t changed = Nanoseconds(found.st_ctim);
  const std::int64_t now = clock.Now();
  const std::int64_t used = touch.time_ns == 0 ? now : touch.time_ns;
  // A time ahead of the file system's clock comes from a wrong one, and is mended.
  const bool is_ahead = modified > now + kReuse || use.ns > now + kReuse;
  const double age = 1e-9 * static_cast<double>(used - use.ns);
  if (!touch.always && !is_ahead && age < interval_seconds) return false;
  const std::int64_t before = changed > 0 ? std::min(modified, changed) : modified;
  const bool reused = use.reused || used > before + kReuse;
  const std::int64_t time = Marked(used, reused);
  return root.TouchBeneath(touch.path, {time / kNsPerSecond, time % kNsPerSecond}) >= 0;
}

// Reads the beginning of a file, to see whether storage answers and how fast.
FileResult ReadSome(const RootDir& root, const std::string& path, std::uint64_t bytes_max,
                    std::uint64_t* bytes) {
  FileOps& ops = root.ops();
  const int opened =
      ops.OpenBeneath(root.fd(), path.c_str(), O_RDONLY | O_NONBLOCK | O_NOCTTY | O_NOATIME, 0);
  if (IsAbsent(opened)) return {FileStatus::kNotFound, 0};
  if (opened < 0) return FileResult::IoError(-opened);
  const UniqueFd file(opened);
  struct stat found{};
  const int error = ops.Fstat(file.get(), &found);
  if (IsAbsent(error)) return {FileStatus::kNotFound, 0};
  if (error < 0) return FileResult::IoError(-error);
  if (!S_ISREG(found.st_mode)) return {FileStatus::kNotFound, 0};
  StagingBuffer buffer;
  try {
    buffer = AllocateAligned(kProbeStepBytes);
  } catch (const std::bad_alloc&) {  // of a thread, it would end the process
    return FileResult::IoError(ENOMEM);
  }
  while (*bytes < bytes_max) {
    const std::uint64_t step = std::min<std::uint64_t>(buffer.size(), bytes_max - *bytes);
    const ssize_t got = ops.Pread(file.get(), buffer.data(), step, static_cast<off_t>(*bytes));
    if (IsAbsent(static_cast<int>(got))) return {FileStatus::kNotFound, 0};
    if (got < 0) return FileResult::IoError(static_cast<int>(-got));
    if (got == 0) break;
    *bytes += static_cast<std::uint64_t>(got);
  }
  return {};
}

// The run of keys that a lookup's row belongs to; null if it counts for itself.
std::atomic<std::uint32_t>* RunOf(const LookupRequest& lookup, std::size_t key) {
  const auto end = std::upper_bound(lookup.run_ends.begin(), lookup.run_ends.end(), key);
  if (end == lookup.run_ends.end()) return nullptr;
  return &lookup.first_missing[static_cast<std::size_t>(end - lookup.run_ends.begin())];
}

void NoteMissing(std::atomic<std::uint32_t>& first, std::uint32_t key) {
  std::uint32_t known = first.load(std::memory_order_relaxed);
  while (key < known && !first.compare_exchange_weak(known, key, std::memory_order_relaxed)) {
  }
}

void AddLookup(EngineParts& parts, const std::shared_ptr<Job>& job) {
  const EngineConfig& config = parts.basis.config;
  const EngineLock lock(parts.mutex);
  parts.Add(job);
  std::uint64_t& queued = parts.jobs.queued(job->kind);
  const std::uint64_t room = config.queue_files - std::min(config.queue_files, queued);
  queued += job->size();
  for (std::size_t i = room; i < job->size(); ++i) {
    parts.jobs.Settle(*job, i, FileResult::IoError(EAGAIN), 0);
  }
  parts.lookups.Add(job);
  parts.deadlines.Add(DeadlineKind::kLookup,
                      {job->submitted + ToDuration(config.lookup_timeout_seconds), job});
}

void AddTouches(EngineParts& parts, std::vector<TouchRequest> touches) {
  const EngineLock lock(parts.mutex);
  if (parts.closed) throw EngineClosed();
  parts.lookups.AddTouches(std::move(touches));
}

}  // namespace

void Engine::SubmitLookup(JobId id, std::vector<std::string> paths) {
  if (paths.empty()) throw std::invalid_argument("a lookup needs at least one path");
  for (std::size_t row = 0; row < paths.size(); ++row) CheckPath(row, paths[row]);
  const auto job = std::make_shared<Job>(JobKind::kLookup, id, paths.size());
  job->lookup.paths = std::move(paths);
  AddLookup(*parts_, job);
}

// The lookup threads make the paths: for thousands of keys that is work, and the caller's thread
// is a scheduler's.
void Engine::SubmitLookupKeys(JobId id, std::vector<std::string> folders,
                              std::vector<std::string> keys, std::vector<std::uint32_t> runs) {
  if (folders.empty() || keys.empty()) {
    throw std::invalid_argument("a lookup needs at least one folder and one key");
  }
  for (std::size_t row = 0; row < folders.size(); ++row) CheckPath(row, folders[row]);
  for (std::size_t row = 0; row < keys.size(); ++row) CheckKey(row, keys[row]);
  std::uint64_t end = 0;
  for (std::uint32_t& run : runs) {  // lengths become ends
    end += run;
    if (run == 0 || end > keys.size()) {
      throw std::invalid_argument("runs: each at least 1, together at most as many as keys");
    }
    run = static_cast<std::uint32_t>(end);
  }
  const std::shared_ptr<Job> job =
      std::make_shared<Job>(JobKind::kLookup, id, folders.size() * keys.size());
  LookupRequest& lookup = job->lookup;
  lookup.folders = std::move(folders);
  lookup.keys = std::move(keys);
  lookup.run_ends = std::move(runs);
  lookup.first_missing = std::make_unique<std::atomic<std::uint32_t>[]>(lookup.run_ends.size());
  for (std::size_t run = 0; run < lookup.run_ends.size(); ++run) {
    lookup.first_missing[run] = std::numeric_limits<std::uint32_t>::max();
  }
  AddLookup(*parts_, job);
}

void Engine::SubmitProbe(JobId id, std::vector<std::string> paths, std::uint64_t bytes_max) {
  if (paths.empty()) throw std::invalid_argument("a probe needs at least one path");
  for (std::size_t row = 0; row < paths.size(); ++row) CheckPath(row, paths[row]);
  const auto job = std::make_shared<Job>(JobKind::kProbe, id, paths.size());
  job->lookup.paths = std::move(paths);
  job->lookup.probe_bytes = bytes_max;
  AddLookup(*parts_, job);
}

void Engine::Touch(std::vector<std::string> paths) {
  std::vector<TouchRequest> touches;
  touches.reserve(paths.size());
  for (std::size_t row = 0; row < paths.size(); ++row) {
    CheckPath(row, paths[row]);
    touches.push_back({std::move(paths[row])});
  }
  AddTouches(*parts_, std::move(touches));
}

void Engine::TouchKeys(const std::vector<std::string>& folders,
                       const std::vector<std::string>& keys,
                       const std::vector<std::int64_t>& times_ns, bool always) {
  if (keys.size() != times_ns.size()) throw std::invalid_argument("times_ns: one a key");
  for (std::size_t row = 0; row < folders.size(); ++row) CheckPath(row, folders[row]);
  std::vector<TouchRequest> touches;
  touches.reserve(folders.size() * keys.size());
  const std::int64_t ahead_ns = parts_->basis.clock.AheadOfRealtime();
  for (std::size_t row = 0; row < keys.size(); ++row) {
    CheckKey(row, keys[row]);
    if (times_ns[row] <= 0) throw std::invalid_argument("times_ns: after 1970");
    const std::int64_t time_ns = std::max<std::int64_t>(1, times_ns[row] + ahead_ns);
    for (const std::string& folder : folders) {
      touches.push_back({ChunkPath(folder, keys[row]), time_ns, always});
    }
  }
  AddTouches(*parts_, std::move(touches));
}

void Engine::SetClock(std::int64_t ahead_ns) { parts_->basis.clock.Set(ahead_ns); }

// Whether a chunk need not be stored. What else has its name is left to the thread that stores.
FileResult LookupWork::FindStored(const Transfer& file) {
  const FileResult found = LookUp(parts_.basis.root, file.request.path);
  if (!found.ok()) return found;
  ChunkIoOptions options = parts_.basis.io_options;
  options.remove_bad = false;
  ThreadContext context;
  try {
    context.page = AllocateAligned(kPageBytes);
  } catch (const std::bad_alloc&) {  // of a thread, it would end the process
    return FileResult::IoError(ENOMEM);
  }
  BadFile kept{};
  const ChunkIdentity identity = parts_.basis.IdentityOf(file);
  return ChunkReader(parts_.basis.root, options, identity, file.request, context).Inspect(&kept);
}

FileResult LookupWork::AnswerOne(Job& job, std::size_t index, std::uint64_t* bytes) {
  if (job.kind == JobKind::kStore) return FindStored(job.transfers[index]);
  if (job.kind == JobKind::kProbe) {
    return ReadSome(parts_.basis.root, job.lookup.paths[index], job.lookup.probe_bytes, bytes);
  }
  if (job.lookup.run_ends.empty()) return LookUp(parts_.basis.root, job.lookup.PathOf(index));
  const std::size_t key = index / job.lookup.folders.size();
  std::atomic<std::uint32_t>* const missing = RunOf(job.lookup, key);
  if (missing != nullptr && missing->load(std::memory_order_relaxed) < key) {
    return {FileStatus::kCancelled, 0};
  }
  const FileResult result = LookUp(parts_.basis.root, job.lookup.PathOf(index));
  if (missing != nullptr && result.status == FileStatus::kNotFound) {
    NoteMissing(*missing, static_cast<std::uint32_t>(key));
  }
  return result;
}

void LookupWork::Answer(EngineLock& lock, const LookupRun& run) {
  Job& job = *run.job;
  const bool store = job.kind == JobKind::kStore;
  std::array<bool, 64> wanted{};  // longer than any run
  std::array<FileResult, 64> results;
  std::array<std::uint64_t, 64> bytes{};
  KVSHELF_DCHECK(run.begin < run.end && run.end - run.begin <= wanted.size());
  for (std::size_t i = run.begin; i < run.end; ++i) {
    const FileState state = job.progress.states[i];
    wanted[i - run.begin] = state == FileState::kQueued;
    if (!store && state == FileState::kQueued) parts_.jobs.LeaveQueue(job, i);
  }
  lock.unlock();
  for (std::size_t i = run.begin; i < run.end; ++i) {
    if (!wanted[i - run.begin]) continue;
    results[i - run.begin] = AnswerOne(job, i, &bytes[i - run.begin]);
  }
  lock.lock();
  for (std::size_t i = run.begin; i < run.end; ++i) {
    if (!wanted[i - run.begin]) continue;
    // Of a store, only the news that it exists already counts, and only if no copier has begun.
    const FileResult& result = results[i - run.begin];
    const bool begun = job.progress.states[i] != FileState::kQueued;
    if (store && (!result.ok() || begun)) continue;
    parts_.jobs.Settle(job, i, result, bytes[i - run.begin]);
  }
}

void LookupWork::Touch(EngineLock& lock, Worker& worker) {
  const std::vector<TouchRequest> touches = parts_.lookups.BeginTouches();
  worker.touching = true;
  lock.unlock();
  std::uint64_t touched = 0;
  for (const TouchRequest& touch : touches) {
    const double interval_seconds = parts_.basis.config.touch_interval_seconds;
    touched += TouchOne(parts_.basis.root, touch, parts_.basis.clock, interval_seconds) ? 1 : 0;
  }
  lock.lock();
  parts_.lookups.CountTouched(touched);
  // If the supervisor gave this thread up, it has done this already.
  if (std::exchange(worker.touching, false)) parts_.lookups.EndTouches();
}

}  // namespace kvshelf
