#include "kvshelf/shelf_sweep.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "sweep_band.h"
#include "sweep_leaves.h"
#include "sweep_spaces.h"

namespace kvshelf {
namespace {

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

sweep::Clock::time_point DeadlineIn(double seconds) {
  const std::chrono::duration<double> span(seconds);
  return sweep::Clock::now() + std::chrono::duration_cast<sweep::Clock::duration>(span);
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
    : parts_(std::make_unique<sweep::Parts>(std::move(ops), root, config, std::move(junk))) {}

ShelfSweep::~ShelfSweep() = default;

void ShelfSweep::SetClock(std::int64_t ahead_ns) { parts_->clock.Set(ahead_ns); }

void ShelfSweep::SetNamespaces(const std::vector<std::string>& folders) {
  parts_->tree.List(folders);
}

SweepReport ShelfSweep::Scan(bool all, double seconds_max) {
  removal_ = nullptr;
  if (scan_ == nullptr || scan_->all != all) scan_ = BeginPass(all);
  sweep::Walk walk{*scan_, {}, DeadlineIn(seconds_max), {}, {}};
  if (sweep::OpenSpaces(*parts_, walk)) {
    parts_->RunThreads(scan_->items.size(), [&] { sweep::LeafWalker(*parts_, walk).Run(); });
  }
  if (scan_->opened && scan_->done == scan_->items.size()) {
    walk.report.finished = true;
    unseen_ = scan_->unseen;
    scan_->items = {};
    if (all) parts_->complete = std::move(scan_);
    scan_ = nullptr;
    parts_->folders.CloseKept();
  }
  return std::move(walk.report);
}

void ShelfSweep::BeginRemoval(std::vector<Cuts> cuts, bool dry_run, bool report_names) {
  scan_ = nullptr;
  removal_ = nullptr;
  removal_ = BeginPass(false);
  removal_->removing = true;
  removal_->dry_run = dry_run;
  removal_->report_names = report_names;
  cuts.resize(namespaces().size());  // those that are new keep all
  removal_->cuts = std::move(cuts);
}

SweepReport ShelfSweep::Remove(Amount need, double seconds_max) {
  SweepReport nothing;
  nothing.finished = true;
  if (removal_ == nullptr) return nothing;
  sweep::Pass& pass = *removal_;
  sweep::Walk walk{pass, need, DeadlineIn(seconds_max), {}, {}};
  if (sweep::OpenSpaces(*parts_, walk) && !pass.in_band) {
    parts_->RunThreads(pass.items.size(), [&] { sweep::LeafWalker(*parts_, walk).Run(); });
    if (pass.done == pass.items.size()) {
      pass.in_band = true;
      std::sort(pass.band.begin(), pass.band.end());
      pass.next = 0;
    }
  }
  if (pass.in_band) {
    parts_->RunThreads(pass.band.size() - pass.next,
                       [&] { sweep::BandWalker(*parts_, walk).Run(); });
  }
  const bool met = walk.need.files <= 0 && walk.need.bytes <= 0;
  walk.report.finished = met || (pass.in_band && pass.next == pass.band.size());
  for (auto& [rank, names] : walk.names) {
    walk.report.names.push_back({rank->name_space, rank->number, std::move(names)});
  }
  if (walk.report.finished) {
    removal_ = nullptr;
    parts_->folders.CloseKept();
  }
  return std::move(walk.report);
}

void ShelfSweep::Stop() { parts_->stop = true; }

const std::vector<NamespaceState>& ShelfSweep::namespaces() const { return parts_->tree.states(); }

const std::vector<Histograms>& ShelfSweep::histograms() const {
  static const std::vector<Histograms> none;
  const sweep::Pass* const pass = Counted();
  return pass != nullptr ? pass->histograms : none;
}

std::int64_t ShelfSweep::histogram_time_ns() const {
  const sweep::Pass* const pass = Counted();
  return pass != nullptr ? pass->time_ns : 0;
}

double ShelfSweep::coverage() const {
  if (parts_->complete != nullptr) return 1;
  if (scan_ == nullptr || !scan_->all || !scan_->opened || scan_->items.empty()) return 0;
  return static_cast<double>(scan_->done) / static_cast<double>(scan_->items.size());
}

const Foreign& ShelfSweep::foreign() const {
  static const Foreign none;
  const sweep::Pass* const pass = Counted();
  return pass != nullptr ? pass->foreign : none;
}

const Held& ShelfSweep::held() const { return parts_->refusals.held(); }

void ShelfSweep::ReleaseHeld() {
  const sweep::SweepLock lock(parts_->mutex);
  for (const sweep::Refusals::File& file : parts_->refusals.Release()) {
    Histograms* const histograms = parts_->HistogramsOf(file.name_space);
    if (histograms == nullptr || !namespaces()[file.name_space].listed) continue;
    const std::size_t bucket = AgeBucket(parts_->complete->time_ns - file.used_ns);
    (*histograms)[file.use_class].Add(bucket, {1, file.bytes});
  }
}

std::unique_ptr<sweep::Pass> ShelfSweep::BeginPass(bool all) {
  parts_->folders.CloseKept();  // what lies under their names may be another folder by now
  auto pass = std::make_unique<sweep::Pass>();
  pass->time_ns = parts_->clock.Now();
  pass->all = all;
  if (all) pass->histograms.resize(namespaces().size());
  for (std::size_t i = 0; i < namespaces().size(); ++i) {
    if (namespaces()[i].listed) {
      pass->spaces.push_back(i);
    } else {
      parts_->Forget(i);
    }
  }
  return pass;
}

const sweep::Pass* ShelfSweep::Counted() const {
  return parts_->complete != nullptr ? parts_->complete.get() : scan_.get();
}

}  // namespace kvshelf
