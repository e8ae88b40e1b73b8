#include "kvshelf/shelf_sweep.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <system_error>
#include <thread>
#include <utility>

#include "shelf_sweep_parts.h"

namespace kvshelf {
namespace {

// The fewest items that are worth a thread.
constexpr std::size_t kItemsPerThread = 16;
// Below vLLM's threads on a busy machine, yet not starved, as SCHED_IDLE may be: a removal that was
// begun holds up what others write to the same file system. Of I/O, the last of the ordinary class.
constexpr int kNice = 19;
constexpr int kIoClassBestEffort = 2 << 13;
constexpr int kIoLowest = 7;
// Folders of ranks that stay open between two looks into them: at most this many, and this part of
// the descriptors that the process may have. An engine's process needs them for other things.
constexpr std::size_t kKeptMax = 64;
constexpr std::size_t kKeptShare = 16;

constexpr std::size_t kHashDigitsMin = 16;  // as src/kvshelf/disk/layout.py
constexpr std::size_t kHashDigitsMax = 248;

bool IsHex(std::string_view text) {
  return text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

// A decimal without leading zeros, at most `max`; -1 if it is none.
std::int64_t Decimal(std::string_view text, std::int64_t max) {
  if (text.empty() || text.size() > 10 || (text[0] == '0' && text.size() > 1)) return -1;
  std::int64_t value = 0;
  for (const char digit : text) {
    if (digit < '0' || digit > '9') return -1;
    value = 10 * value + (digit - '0');
  }
  return value <= max ? value : -1;
}

void LowerOwnPriority() {
  const auto thread = static_cast<id_t>(::syscall(SYS_gettid));
  ::setpriority(PRIO_PROCESS, thread, kNice);
  ::syscall(SYS_ioprio_set, 1, 0, kIoClassBestEffort | kIoLowest);
  ::pthread_setname_np(::pthread_self(), "kvs-evict");
}

}  // namespace

bool IsChunkName(std::string_view leaf, std::string_view name) {
  const std::size_t dash = name.find("-g");
  if (dash == std::string_view::npos || !name.ends_with(".kv")) return false;
  const std::string_view hash = name.substr(0, dash);
  if (hash.size() < kHashDigitsMin || hash.size() > kHashDigitsMax || hash.size() % 2 != 0 ||
      !hash.starts_with(leaf) || !IsHex(hash)) {
    return false;
  }
  const std::string_view group = name.substr(dash + 2, name.size() - dash - 2 - 3);
  return Decimal(group, UINT32_MAX) >= 0;
}

std::int64_t RankOf(std::string_view name) {
  return name.starts_with("r") ? Decimal(name.substr(1), 999'999'999) : -1;
}

std::size_t AgeBucket(std::int64_t age_ns) {
  if (age_ns < 0) return 0;
  const auto unit = static_cast<std::uint64_t>(age_ns) >> 20;
  const auto width = static_cast<int>(std::bit_width(unit));
  if (width <= 8) return unit;
  const int shift = width - 8;
  return std::min<std::size_t>(static_cast<std::size_t>(shift) * 128 + (unit >> shift),
                               kAgeBuckets - 1);
}

std::int64_t AgeBucketBegin(std::size_t bucket) {
  if (bucket < 256) return static_cast<std::int64_t>(bucket) << 20;
  const std::size_t shift = bucket / 128 - 1;
  return static_cast<std::int64_t>(bucket - 128 * shift) << (shift + 20);
}

double SteadySeconds() {
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

std::chrono::nanoseconds ThreadTime() {
  return std::chrono::nanoseconds(ClockNs(CLOCK_THREAD_CPUTIME_ID));
}

int RunnableThreads() {
  const UniqueFd file(::open("/proc/loadavg", O_RDONLY | O_CLOEXEC));
  char text[128] = {};
  if (!file || ::read(file.get(), text, sizeof(text) - 1) <= 0) return 0;
  int runnable = 0;
  return std::sscanf(text, "%*s %*s %*s %d", &runnable) == 1 ? runnable : 0;
}

std::string LeafName(std::size_t index) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  return {kDigits[index >> 8], kDigits[index >> 4 & 15], kDigits[index & 15]};
}

int ListNames(int folder, std::vector<std::string>* names) {
  if (::lseek(folder, 0, SEEK_SET) < 0) return -errno;
  alignas(dirent64) char buffer[16384];
  for (;;) {
    const ssize_t bytes = ::getdents64(folder, buffer, sizeof(buffer));
    if (bytes < 0 && errno == EINTR) continue;
    if (bytes <= 0) return bytes < 0 ? -errno : 0;
    for (ssize_t at = 0; at < bytes;) {
      const auto* const entry = reinterpret_cast<const dirent64*>(buffer + at);
      const std::string_view name = entry->d_name;
      if (name != "." && name != "..") names->emplace_back(name);
      at += entry->d_reclen;
    }
  }
}

bool Junk::Has(std::string_view path) const {
  std::string name(path.substr(path.rfind('/') + 1));
  for (char& c : name) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  auto any = [](const std::vector<std::string>& texts, auto&& matches) {
    return std::any_of(texts.begin(), texts.end(), matches);
  };
  return any(names, [&](const std::string& text) { return name == text; }) ||
         any(prefixes, [&](const std::string& text) { return name.starts_with(text); }) ||
         any(suffixes, [&](const std::string& text) { return name.ends_with(text); });
}

void NoteForeign(Foreign& foreign, const std::string& path) {
  ++foreign.count;
  if (foreign.examples.size() < kExamples) foreign.examples.push_back(path);
}

void Histogram::Add(std::size_t bucket, Amount amount) {
  const auto before = [](const Row& row, std::size_t value) { return row.bucket < value; };
  auto row = std::lower_bound(rows_.begin(), rows_.end(), bucket, before);
  if (row == rows_.end() || row->bucket != bucket) {
    if (amount.files <= 0) return;
    row = rows_.insert(row, {bucket, {}});
  }
  row->amount.files = std::max<std::int64_t>(0, row->amount.files + amount.files);
  row->amount.bytes = std::max<std::int64_t>(0, row->amount.bytes + amount.bytes);
}

Amount Histogram::operator[](std::size_t bucket) const {
  const auto before = [](const Row& row, std::size_t value) { return row.bucket < value; };
  const auto row = std::lower_bound(rows_.begin(), rows_.end(), bucket, before);
  return row != rows_.end() && row->bucket == bucket ? row->amount : Amount{};
}

ShelfSweep::ShelfSweep(std::shared_ptr<FileOps> ops, const std::string& root, SweepConfig config,
                       Junk junk)
    : ops_(std::move(ops)),
      config_(config),
      junk_(std::move(junk)),
      root_(::open(root.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
  struct stat found{};
  if (!root_ || ops_->Fstat(root_.get(), &found) < 0) {
    throw std::system_error(errno, std::generic_category(), root);
  }
  device_ = found.st_dev;
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  const auto share = static_cast<std::size_t>(limit.rlim_cur / kKeptShare);
  kept_max_ = std::min(kKeptMax, share);
  // Each thread has three folders open.
  config_.threads = static_cast<unsigned>(std::clamp<std::size_t>(share, 1, config_.threads));
}

ShelfSweep::~ShelfSweep() = default;

void ShelfSweep::NoteUnknown(Foreign& foreign, const std::string& path) const {
  if (!junk_.Has(path)) NoteForeign(foreign, path);
}

void ShelfSweep::Run(Walk& walk, std::size_t items, void (ShelfSweep::*work)(Walk&)) {
  const std::size_t threads = std::clamp<std::size_t>(items / kItemsPerThread, 1, config_.threads);
  std::vector<std::jthread> running;
  for (std::size_t i = 0; i < threads; ++i) {
    try {
      running.emplace_back([&] {
        LowerOwnPriority();
        (this->*work)(walk);
      });
    } catch (const std::system_error&) {
      if (running.empty()) throw;  // the caller says so
      return;                      // those that were to be had do the work
    }
  }
}

// Whether a thread of a walk is to take nothing more. Its first is not refused for lack of time, so
// that each call gets on.
bool ShelfSweep::IsOver(const Walk& walk, bool first) const {
  return stop_ || (!first && Clock::now() >= walk.deadline);
}

SweepReport ShelfSweep::Scan(bool all, double seconds_max) {
  removal_ = nullptr;
  if (scan_ == nullptr || scan_->all != all) scan_ = BeginPass(all);
  const auto span = std::chrono::duration<double>(seconds_max);
  Walk walk{*scan_, {}, Clock::now() + std::chrono::duration_cast<Clock::duration>(span), {}, {}};
  if (Open(walk)) Run(walk, scan_->items.size(), &ShelfSweep::WalkLeaves);
  if (scan_->opened && scan_->done == scan_->items.size()) {
    walk.report.finished = true;
    unseen_ = scan_->unseen;
    scan_->items = {};
    if (all) complete_ = std::move(scan_);
    scan_ = nullptr;
    CloseKept();
  }
  return std::move(walk.report);
}

const std::vector<Histograms>& ShelfSweep::histograms() const {
  static const std::vector<Histograms> none;
  if (complete_ != nullptr) return complete_->histograms;
  return scan_ != nullptr ? scan_->histograms : none;
}

std::int64_t ShelfSweep::histogram_time_ns() const {
  if (complete_ != nullptr) return complete_->time_ns;
  return scan_ != nullptr ? scan_->time_ns : 0;
}

double ShelfSweep::coverage() const {
  if (complete_ != nullptr) return 1;
  if (scan_ == nullptr || !scan_->all || !scan_->opened || scan_->items.empty()) return 0;
  return static_cast<double>(scan_->done) / static_cast<double>(scan_->items.size());
}

const Foreign& ShelfSweep::foreign() const {
  static const Foreign none;
  if (complete_ != nullptr) return complete_->foreign;
  return scan_ != nullptr ? scan_->foreign : none;
}

}  // namespace kvshelf
