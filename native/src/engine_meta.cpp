// The work of lookup threads: small metadata calls that never queue behind payloads.
#include <algorithm>
#include <array>
#include <cerrno>
#include <ctime>

#include "engine_core.h"

namespace kvshelf {
namespace {

// Small, so that a lookup that comes meanwhile waits little.
constexpr std::size_t kTouchRun = 8;
// A header and one page: nothing shorter is a chunk file.
constexpr off_t kChunkFileBytesMin = 2 * kPageBytes;

FileResult LookUp(const RootDir& root, const std::string& path) {
  struct stat found{};
  const int error = root.ops().StatAt(root.fd(), path.c_str(), &found);
  if (error == -ENOENT || error == -ENOTDIR || error == -ESTALE) {
    return {FileStatus::kNotFound, 0};
  }
  if (error < 0) return FileResult::IoError(-error);
  const bool chunk = S_ISREG(found.st_mode) && found.st_size >= kChunkFileBytesMin;
  return {chunk ? FileStatus::kOk : FileStatus::kNotFound, 0};
}

// Whether the access time was renewed.
bool TouchOne(const RootDir& root, const std::string& path, double interval_seconds) {
  struct stat found{};
  if (root.ops().StatAt(root.fd(), path.c_str(), &found) < 0 || !S_ISREG(found.st_mode)) {
    return false;
  }
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  const double age = static_cast<double>(now.tv_sec - found.st_atim.tv_sec) +
                     1e-9 * static_cast<double>(now.tv_nsec - found.st_atim.tv_nsec);
  // A time in the future (clocks of nodes differ) is young enough.
  if (age < interval_seconds) return false;
  return root.ops().TouchAt(root.fd(), path.c_str()) >= 0;
}

}  // namespace

void EngineCore::Probe(Lock& lock, const MetaBatch& batch) {
  Job& job = *batch.job;
  const bool store = job.kind == JobKind::kStore;
  std::array<bool, 64> wanted{};  // longer than any run
  std::array<FileResult, 64> results;
  for (std::size_t i = batch.begin; i < batch.end; ++i) {
    const FileState state = job.states[i];
    wanted[i - batch.begin] = state == FileState::kQueued;
    if (!store && state == FileState::kQueued) LeaveQueue(job, i);
  }
  lock.unlock();
  for (std::size_t i = batch.begin; i < batch.end; ++i) {
    if (!wanted[i - batch.begin]) continue;
    results[i - batch.begin] = LookUp(root_, store ? job.transfers[i].request.path : job.PathOf(i));
  }
  lock.lock();
  for (std::size_t i = batch.begin; i < batch.end; ++i) {
    if (!wanted[i - batch.begin]) continue;
    // Of a store, only the news that it exists already counts, and only if no copier has begun.
    if (store && (!results[i - batch.begin].ok() || job.states[i] != FileState::kQueued)) continue;
    Settle(job, i, results[i - batch.begin], 0);
  }
}

void EngineCore::TouchSome(Lock& lock, Worker& worker) {
  std::vector<std::string> paths;
  while (!touches_.empty() && paths.size() < kTouchRun) {
    paths.push_back(std::move(touches_.front()));
    touches_.pop_front();
  }
  ++touching_;
  worker.touching = true;
  lock.unlock();
  std::uint64_t touched = 0;
  for (const std::string& path : paths) {
    if (TouchOne(root_, path, config_.touch_interval_seconds)) ++touched;
  }
  lock.lock();
  stats_.touched += touched;
  // If the supervisor gave this thread up, it has done this already.
  if (worker.touching) --touching_;
  worker.touching = false;
  changed_.notify_all();
}

}  // namespace kvshelf
