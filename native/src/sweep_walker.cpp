#include "sweep_walker.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <system_error>
#include <thread>

namespace kvshelf::sweep {
namespace {

// The fewest items that are worth a thread.
constexpr std::size_t kItemsPerThread = 16;
// Below vLLM's threads on a busy machine, yet not starved, as SCHED_IDLE may be: a removal that was
// begun holds up what others write to the same file system. Of I/O, the last of the ordinary class.
constexpr int kNice = 19;
constexpr int kIoClassBestEffort = 2 << 13;
constexpr int kIoLowest = 7;
// Being ahead of the rate by less than this is not worth a sleep; sleeps are no longer than the
// other, so that Stop is obeyed in time.
constexpr double kPaceSlackSeconds = 0.005;
constexpr double kPaceSleepSeconds = 0.02;

void LowerOwnPriority() {
  const auto thread = static_cast<id_t>(::syscall(SYS_gettid));
  ::setpriority(PRIO_PROCESS, thread, kNice);
  ::syscall(SYS_ioprio_set, 1, 0, kIoClassBestEffort | kIoLowest);
  ::pthread_setname_np(::pthread_self(), "kvs-evict");
}

double SteadySeconds() {
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

}  // namespace

int RunnableThreads() {
  const UniqueFd file(::open("/proc/loadavg", O_RDONLY | O_CLOEXEC));
  char text[128] = {};
  if (!file || ::read(file.get(), text, sizeof(text) - 1) <= 0) return 0;
  int runnable = 0;
  return std::sscanf(text, "%*s %*s %*s %d", &runnable) == 1 ? runnable : 0;
}

std::chrono::nanoseconds ThreadTime() {
  return std::chrono::nanoseconds(ClockNs(CLOCK_THREAD_CPUTIME_ID));
}

void Burst::RestIfDue() {
  const Clock::time_point now = Clock::now();
  if (now < look_at_) return;
  const std::chrono::nanoseconds used = ThreadTime() - began_;
  look_at_ = now + kBurst - used;
  if (used < kBurst) return;
  const int processors = static_cast<int>(std::thread::hardware_concurrency());
  const int others = RunnableThreads() - awake_.fetch_sub(1);
  std::this_thread::sleep_for(RestFor(others, processors));
  ++awake_;
  began_ = ThreadTime();
  look_at_ = Clock::now() + kBurst;
}

Parts::Parts(std::shared_ptr<FileOps> file_ops, const std::string& root, const SweepConfig& limits,
             Junk no_data)
    : ops(std::move(file_ops)),
      config(limits),
      junk(std::move(no_data)),
      folders(ops, root, mutex),
      refusals(limits.held_files) {
  config.threads = static_cast<unsigned>(
      std::min<std::size_t>(folders.threads_max(), std::max(1u, config.threads)));
}

Histograms* Parts::HistogramsOf(std::size_t name_space) {
  const bool is_there = complete != nullptr && name_space < complete->histograms.size();
  return is_there ? &complete->histograms[name_space] : nullptr;
}

void Parts::Forget(std::size_t name_space) {
  const SweepLock lock(mutex);
  tree.Forget(name_space);
  if (Histograms* const histograms = HistogramsOf(name_space)) *histograms = {};
}

void Parts::RunThreads(std::size_t items, const std::function<void()>& body) const {
  const std::size_t threads = std::clamp<std::size_t>(items / kItemsPerThread, 1, config.threads);
  std::vector<std::jthread> running;
  for (std::size_t i = 0; i < threads; ++i) {
    try {
      running.emplace_back([&] {
        LowerOwnPriority();
        body();
      });
    } catch (const std::system_error&) {
      if (running.empty()) throw;  // the caller says so
      return;                      // those that were to be had do the work
    }
  }
}

bool Walker::IsOver(bool first) const {
  return parts_.stop || (!first && Clock::now() >= walk_.deadline);
}

bool Walker::Pace() {
  if (parts_.stop.load(std::memory_order_relaxed)) return false;
  burst_.RestIfDue();
  if (parts_.config.files_per_second <= 0) return true;
  double ahead = 0;
  {
    const SweepLock lock(parts_.mutex);
    const double now = SteadySeconds();
    double& next = parts_.next_file_seconds;
    next = std::max(next, now) + 1 / parts_.config.files_per_second;
    ahead = next - now;
  }
  while (ahead > kPaceSlackSeconds && !parts_.stop) {
    const double part = std::min(ahead, kPaceSleepSeconds);
    std::this_thread::sleep_for(std::chrono::duration<double>(part));
    ahead -= part;
  }
  return !parts_.stop;
}

void Walker::NoteUnknown(Foreign& foreign, const std::string& path) const {
  if (!parts_.junk.Has(path)) NoteForeign(foreign, path);
}

bool Walker::NoteUnopened(const std::string& path, int error) {
  const SweepLock lock(parts_.mutex);
  if (error == -ENOTDIR || error == -ELOOP || error == -EXDEV) {
    NoteUnknown(walk_.pass.foreign, path);
    return true;
  }
  if (error == -ENOENT || error == -ESTALE) return true;
  ++walk_.report.faults[-error];
  ++walk_.pass.unseen;
  return false;
}

void Walker::NoteFault(int error) {
  const SweepLock lock(parts_.mutex);
  ++walk_.report.faults[error];
}

bool Walker::NeedsNoList(const Rank& rank, const Leaf& leaf, const struct stat& status) const {
  if (leaf.mtime_ns == 0 || leaf.mtime_ns != Nanoseconds(status.st_mtim)) return false;
  if (!walk_.pass.removing) return !walk_.pass.all;
  // Nothing of a folder that has not changed can be old enough: uses only make it younger.
  const Cuts& cuts = walk_.pass.cuts[rank.name_space];
  return std::all_of(cuts.begin(), cuts.end(), [&](const Cut& cut) {
    return leaf.oldest_ns >= std::max(cut.sure_before_ns, cut.maybe_before_ns);
  });
}

bool Walker::HasEnough() const {
  return (walk_.need.files <= 0 && walk_.need.bytes <= 0) ||
         static_cast<std::uint64_t>(walk_.report.removed.files) >= parts_.config.removals_max;
}

void Walker::Meet(std::int64_t files, std::int64_t bytes) {
  walk_.need.files -= files;
  walk_.need.bytes -= bytes;
}

int Walker::RemoveFile(Rank& rank, int folder, const std::string& leaf, const std::string& name,
                       const struct stat& file) {
  const bool dry_run = walk_.pass.dry_run;
  int error = dry_run ? 0 : parts_.ops->UnlinkAt(folder, name.c_str());
  if (error == -ESTALE) error = -ENOENT;
  const SweepLock lock(parts_.mutex);
  if (error == 0) {
    walk_.report.removed.files += 1;
    walk_.report.removed.bytes += file.st_size;
    if (walk_.pass.report_names) walk_.names[&rank].push_back(name);
  }
  // So that the histograms stay near to the truth; refused, it is no candidate either.
  if (Histograms* const histograms = dry_run ? nullptr : parts_.HistogramsOf(rank.name_space)) {
    const UseTime use = LastUse(file);
    const std::int64_t age = parts_.complete->time_ns - use.ns;
    (*histograms)[use.reused].Add(AgeBucket(age), {-1, -file.st_size});
  }
  if (error < 0 && error != -ENOENT) {
    ++walk_.report.faults[-error];
    ++walk_.report.refused;
    parts_.refusals.Add(rank, parts_.tree.PathOf(rank) + "/" + leaf + "/" + name, name, file,
                        -error);
  }
  return error;
}

}  // namespace kvshelf::sweep
