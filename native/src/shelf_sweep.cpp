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
#include <system_error>
#include <thread>

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

constexpr std::size_t kHashDigitsMin = 16;  // as src/kvshelf/layout.py
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
  const int copy = ::fcntl(folder, F_DUPFD_CLOEXEC, 0);
  if (copy < 0) return -errno;
  DIR* const stream = ::fdopendir(copy);
  if (stream == nullptr) {
    const int error = -errno;
    ::close(copy);
    return error;
  }
  errno = 0;
  while (const dirent* const entry = ::readdir(stream)) {
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") names->emplace_back(name);
    errno = 0;
  }
  const int error = -errno;
  ::closedir(stream);
  return error;
}

void NoteForeign(Foreign& foreign, const std::string& path) {
  ++foreign.count;
  if (foreign.examples.size() < kExamples) foreign.examples.push_back(path);
}

ShelfSweep::ShelfSweep(std::shared_ptr<FileOps> ops, const std::string& root, SweepConfig config)
    : ops_(std::move(ops)),
      config_(config),
      root_(::open(root.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
  struct stat found{};
  if (!root_ || ops_->Fstat(root_.get(), &found) < 0) {
    throw std::system_error(errno, std::generic_category(), root);
  }
  device_ = found.st_dev;
}

ShelfSweep::~ShelfSweep() = default;

void ShelfSweep::SetNamespaces(const std::vector<std::string>& folders) {
  for (NamespaceState& known : namespaces_) {
    known.listed = std::find(folders.begin(), folders.end(), known.folder) != folders.end();
  }
  for (const std::string& folder : folders) {
    const auto same = [&](const NamespaceState& known) { return known.folder == folder; };
    if (std::none_of(namespaces_.begin(), namespaces_.end(), same)) {
      namespaces_.push_back({folder, true, {}, 0});
    }
  }
}

int ShelfSweep::OpenFolder(int parent, const std::string& name, struct stat* found) const {
  const int fd = ops_->OpenBeneath(parent, name.c_str(), O_RDONLY | O_DIRECTORY, 0);
  if (fd < 0) return fd;
  const int error = ops_->Fstat(fd, found);
  if (error >= 0 && found->st_dev == device_) return fd;
  ::close(fd);
  return error < 0 ? error : -EXDEV;  // another file system is mounted there
}

std::unique_ptr<ShelfSweep::Pass> ShelfSweep::BeginPass() {
  auto pass = std::make_unique<Pass>();
  pass->time_ns = clock_.Now();
  pass->histograms.resize(namespaces_.size());
  for (std::unique_ptr<Rank>& rank : ranks_) rank->fd.Reset();
  for (std::size_t i = 0; i < namespaces_.size(); ++i) {
    if (namespaces_[i].listed) OpenNamespace(i, *pass);
  }
  // A rank whose folder is gone counts no more; after a fault nobody knows which those are.
  std::erase_if(ranks_, [&](const std::unique_ptr<Rank>& rank) {
    if (rank->fd || !pass->faults.empty()) return false;
    for (Leaf& leaf : rank->leaves) Forget(*rank, leaf);
    complete_ = nullptr;  // its histograms count what is gone
    return true;
  });
  for (const std::unique_ptr<Rank>& rank : ranks_) {
    if (rank->fd) ListRank(*rank, *pass);
  }
  std::stable_sort(pass->items.begin(), pass->items.end(),
                   [](const auto& a, const auto& b) { return a.second < b.second; });
  return pass;
}

void ShelfSweep::NoteUnopened(Pass& pass, const std::string& path, int error) {
  if (error == -ENOTDIR || error == -ELOOP || error == -EXDEV) {
    NoteForeign(pass.foreign, path);
  } else if (error != -ENOENT && error != -ESTALE) {
    ++pass.faults[-error];
  }
}

void ShelfSweep::OpenNamespace(std::size_t index, Pass& pass) {
  const std::string& name = namespaces_[index].folder;
  struct stat found{};
  const UniqueFd folder(OpenFolder(root_.get(), name, &found));
  int error = folder.get();
  if (folder) error = ops_->StatAt(folder.get(), "namespace.json", &found);
  if (error >= 0 && !S_ISREG(found.st_mode)) error = -ENOTDIR;
  std::vector<std::string> names;
  if (error >= 0) error = ListNames(folder.get(), &names);
  if (error < 0) return NoteUnopened(pass, name, error);
  for (const std::string& entry : names) {
    if (entry == "namespace.json" || entry == "tmp") continue;
    const std::int64_t number = RankOf(entry);
    UniqueFd fd(number < 0 ? -ENOTDIR : OpenFolder(folder.get(), entry, &found));
    if (!fd) {
      NoteUnopened(pass, name + "/" + entry, fd.get());
      continue;
    }
    const auto same = [&](const std::unique_ptr<Rank>& rank) {
      return rank->name_space == index && rank->number == number;
    };
    auto rank = std::find_if(ranks_.begin(), ranks_.end(), same);
    if (rank == ranks_.end()) rank = ranks_.insert(rank, std::make_unique<Rank>());
    (*rank)->name_space = index;
    (*rank)->number = static_cast<std::uint32_t>(number);
    (*rank)->path = name + "/" + entry;
    (*rank)->fd = std::move(fd);
  }
}

void ShelfSweep::ListRank(Rank& rank, Pass& pass) {
  std::vector<std::string> names;
  const int error = ListNames(rank.fd.get(), &names);
  if (error < 0) return NoteUnopened(pass, rank.path, error);
  std::vector<bool> there(kLeaves);
  for (const std::string& name : names) {
    if (name.size() == 3 && IsHex(name)) {
      there[std::stoul(name, nullptr, 16)] = true;
    } else {
      NoteForeign(pass.foreign, rank.path + "/" + name);
    }
  }
  for (std::size_t i = 0; i < kLeaves; ++i) {
    if (there[i]) {
      pass.items.emplace_back(&rank, static_cast<std::uint16_t>(i));
    } else {
      Forget(rank, rank.leaves[i]);
    }
  }
}

void ShelfSweep::Forget(Rank& rank, Leaf& leaf) {
  Amount& amount = namespaces_[rank.name_space].amount;
  amount.files -= leaf.amount.files;
  amount.bytes -= leaf.amount.bytes;
  leaf = {};
}

void ShelfSweep::Run(Walk& walk, std::size_t items, void (ShelfSweep::*work)(Walk&)) {
  const std::size_t threads = std::clamp<std::size_t>(items / kItemsPerThread, 1, config_.threads);
  std::vector<std::jthread> running;
  for (std::size_t i = 0; i < threads; ++i) {
    running.emplace_back([&] {
      LowerOwnPriority();
      (this->*work)(walk);
    });
  }
}

SweepReport ShelfSweep::Scan(bool all, double seconds_max) {
  removal_ = nullptr;
  if (scan_ == nullptr || scan_->all != all) {
    scan_ = BeginPass();
    scan_->all = all;
  }
  const auto span = std::chrono::duration<double>(seconds_max);
  Walk walk{*scan_, {}, Clock::now() + std::chrono::duration_cast<Clock::duration>(span), {}, {}};
  walk.report.faults = std::exchange(scan_->faults, {});
  Run(walk, scan_->items.size(), &ShelfSweep::WalkLeaves);
  if (scan_->done == scan_->items.size()) {
    walk.report.finished = true;
    scan_->items = {};
    if (all) complete_ = std::move(scan_);
    scan_ = nullptr;
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
  if (scan_ == nullptr || !scan_->all || scan_->items.empty()) return 0;
  return static_cast<double>(scan_->done) / static_cast<double>(scan_->items.size());
}

const Foreign& ShelfSweep::foreign() const {
  static const Foreign none;
  if (complete_ != nullptr) return complete_->foreign;
  return scan_ != nullptr ? scan_->foreign : none;
}

}  // namespace kvshelf
