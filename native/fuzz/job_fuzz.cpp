// Jobs with hostile columns, sizes and settings: each is refused with std::invalid_argument or
// ends with a status a file, and block memory that no load of it names stays as it is.
#include <filesystem>
#include <memory>
#include <optional>
#include <stdexcept>

#include "fuzz.h"
#include "kvshelf/engine.h"

namespace kvshelf::fuzz {
namespace {

namespace fs = std::filesystem;

constexpr std::uint32_t kBlocks = 16;
constexpr std::size_t kPage = 512;
constexpr std::size_t kGap = 32;
constexpr std::byte kFill{0xEE};
constexpr int kRunsPerShelf = 500;  // then the files are removed

// One engine for all inputs: starting threads would be most of the time.
struct Site {
  std::string root =
      fs::exists("/dev/shm") ? "/dev/shm/kvshelf-fuzz-XXXXXX" : "/tmp/kvshelf-fuzz-XXXXXX";
  std::vector<std::byte> bytes = std::vector<std::byte>(3 * kBlocks * (kPage + kGap), kFill);
  std::optional<Engine> engine;
  JobId next = 1;
  int runs = 0;

  Site() {
    DEMAND(::mkdtemp(root.data()) != nullptr);
    EngineSetup setup;
    setup.root = root;
    setup.groups.push_back(Group(0, 1));
    setup.groups.push_back(Group(1, 2));
    setup.config.io_threads = 2;
    setup.config.load_only_threads = 1;
    setup.config.lookup_threads = 2;
    setup.config.piece_bytes = 4096;
    setup.config.step_bytes = 4096;
    setup.config.write_buffer_bytes = 16 * 4096;
    setup.config.queue_files = 64;
    setup.config.touch_queue_files = 8;
    engine.emplace(std::move(setup));
  }
  ~Site() {
    engine.reset();
    fs::remove_all(root);
  }
  std::byte* Layer(std::size_t layer) { return bytes.data() + layer * kBlocks * (kPage + kGap); }
  GroupMemory Group(std::size_t first, std::size_t layers) {
    std::vector<Pages> pages;
    for (std::size_t i = 0; i < layers; ++i) {
      pages.push_back({Layer(first + i), kPage + kGap, kPage});
    }
    return GroupMemory(std::move(pages), kBlocks, first);
  }
  bool GapsAreWhole() const {
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      if (i % (kPage + kGap) >= kPage && bytes[i] != kFill) return false;
    }
    return true;
  }
};

std::int32_t NumberOf(Input& input) {
  const auto pick = input.Take<std::uint8_t>();
  return pick < 230 ? pick % 18 - 1 : input.Take<std::int32_t>();
}

std::string PathOf(Input& input) {
  const auto pick = input.Take<std::uint8_t>();
  if (pick >= 240) return input.Text(pick - 230);
  return "ns/r0/abc/" + std::to_string(pick % 8) + "-g0.kv";
}

std::string KeyOf(Input& input) {
  const auto pick = input.Take<std::uint8_t>();
  return std::string(pick < 230 ? 12 + pick % 4 : pick - 225, static_cast<char>('a' + pick % 4));
}

struct Columns {
  std::vector<std::int32_t> groups, first_blocks, block_counts, block_ids;
  Batch batch;

  explicit Columns(Input& input) {
    const int rows = input.Take<std::uint8_t>() % 6;
    for (int row = 0; row < rows; ++row) {
      batch.paths.push_back(PathOf(input));
      batch.keys.push_back(KeyOf(input));
      const auto group = input.Take<std::uint8_t>();
      groups.push_back(group < 240 ? group % 2 : NumberOf(input));
      first_blocks.push_back(NumberOf(input) / 4);
      block_counts.push_back(NumberOf(input) / 2);
      const std::int32_t ids = block_counts.back() < 64 ? block_counts.back() : 64;
      for (std::int32_t i = 0; i < ids; ++i) block_ids.push_back(NumberOf(input));
    }
    const auto damage = input.Take<std::uint8_t>();
    if (damage == 255 && !groups.empty()) groups.pop_back();
    if (damage == 254) first_blocks.push_back(0);
    if (damage == 253) block_ids.push_back(0);
    if (damage == 252 && !batch.keys.empty()) batch.keys.pop_back();
    batch.groups = groups;
    batch.first_blocks = first_blocks;
    batch.block_counts = block_counts;
    batch.block_ids = block_ids;
  }
};

void Submit(Engine& engine, JobId job, Input& input) {
  switch (input.Take<std::uint8_t>() % 6) {
    case 0:
      return engine.SubmitStore(job, Columns(input).batch);
    case 1:
      return engine.SubmitLoad(job, Columns(input).batch);
    case 2:
      return engine.SubmitLookup(job, Columns(input).batch.paths);
    case 3: {
      const Columns columns(input);
      std::vector<std::uint32_t> runs;
      for (int i = input.Take<std::uint8_t>() % 4; i > 0; --i) {
        runs.push_back(static_cast<std::uint32_t>(NumberOf(input)));
      }
      return engine.SubmitLookupKeys(job, {"ns/r0", PathOf(input)}, columns.batch.keys, runs);
    }
    case 4: {
      const Columns columns(input);
      return engine.SubmitProbe(job, columns.batch.paths, input.Take<std::uint64_t>());
    }
    default:
      return engine.Touch(Columns(input).batch.paths);
  }
}

// Settings and shapes are judged before any thread starts or memory is touched.
void MakeHostileMemory(Input& input) {
  EngineConfig config;
  config.io_threads = NumberOf(input);
  config.load_only_threads = NumberOf(input);
  config.lookup_threads = NumberOf(input);
  config.piece_bytes = input.Take<std::uint64_t>();
  config.step_bytes = input.Take<std::uint64_t>();
  config.write_buffer_bytes = input.Take<std::uint64_t>();
  config.load_timeout_seconds = input.Take<double>();
  config.store_queue_seconds = input.Take<double>();
  try {
    CheckConfig(config);
    DEMAND(config.io_threads >= 1 && config.piece_bytes % 4096 == 0 && config.piece_bytes > 0);
    DEMAND(config.step_bytes % 4096 == 0 && config.step_bytes > 0);
  } catch (const std::invalid_argument&) {
  }
  std::vector<Pages> pages;
  for (int i = input.Take<std::uint8_t>() % 4; i > 0; --i) {
    // Map computes addresses and touches nothing, so this need not be memory.
    auto* const base = reinterpret_cast<std::byte*>(std::uintptr_t{1} << 44);
    const std::uint64_t bytes = input.Take<std::uint64_t>() >> input.Take<std::uint8_t>() % 64;
    pages.push_back({base, bytes + input.Take<std::uint8_t>() % 3 - 1, bytes});
  }
  try {
    const GroupMemory memory(pages, 3, 0);
    const std::vector<std::int32_t> ids = {2, 0, 1, 1};
    const std::uint64_t total = ids.size() * memory.block_bytes();
    const std::uint64_t begin = input.Take<std::uint64_t>() % total;
    const std::uint64_t end = begin + input.Take<std::uint64_t>() % (total - begin + 1);
    std::vector<Segment> segments;
    memory.Map(ids, begin, end, segments);
    std::uint64_t sum = 0;
    for (const Segment& segment : segments) sum += segment.bytes;
    DEMAND(sum == end - begin);
  } catch (const std::invalid_argument&) {
  }
}

}  // namespace

std::vector<std::string> Seeds(const std::vector<std::string>&) {
  std::vector<std::string> seeds;
  for (char kind = 0; kind < 6; ++kind) {
    std::string one = {kind, 2};
    for (char row = 0; row < 2; ++row) one += std::string{row, 0, 0, 4, 4, 4, 5, 6, 7, 8, 9};
    seeds.push_back(one + '\0');
    seeds.push_back(std::string{0, 1, 0, 0, 0, 1, 5, 3, 4, 0} + one + '\0' + one);
  }
  return seeds;
}

}  // namespace kvshelf::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes) {
  using namespace kvshelf;
  using namespace kvshelf::fuzz;
  static Site site;
  Input input(data, bytes);
  std::vector<JobId> jobs;
  for (int i = 0; i < 4 && !input.empty(); ++i) {
    const JobId job = site.next++;
    try {
      Submit(*site.engine, job, input);
      jobs.push_back(job);
    } catch (const std::invalid_argument&) {
    }
  }
  DEMAND(site.engine->Wait(jobs, Phase::kFinished, 30));
  for (const Report& report : site.engine->Poll()) {
    if (report.phase != Phase::kFinished) continue;
    for (const FileStatus status : report.statuses) DEMAND(status <= FileStatus::kDropped);
  }
  DEMAND(site.GapsAreWhole());
  MakeHostileMemory(input);
  if (++site.runs % kRunsPerShelf == 0) {
    for (const auto& entry : fs::directory_iterator(site.root)) fs::remove_all(entry.path());
  }
  return 0;
}
