// An engine over a temp directory, and jobs to give it.
#pragma once

#include <numeric>
#include <optional>

#include "check.h"
#include "support.h"

namespace kvshelf::testing {

inline constexpr std::size_t kBlocksPerFile = 4;

// Pages of the tests' blocks: of an odd size, or one that the GPU's kernel takes.
#ifdef KVSHELF_TEST_PAGE_BYTES
inline constexpr std::size_t kTestPageBytes = KVSHELF_TEST_PAGE_BYTES;
#else
inline constexpr std::size_t kTestPageBytes = 5000;
#endif

// Files of four blocks each; file i moves block ids 4 i to 4 i + 3.
struct Files {
  std::vector<std::int32_t> groups, first_blocks, block_counts, block_ids;
  Batch batch;

  Files(int begin, int end) {
    for (int i = begin; i < end; ++i) {
      batch.paths.push_back(Path(i));
      batch.keys.push_back("a key of twelve bytes or more " + std::to_string(i));
      groups.push_back(0);
      first_blocks.push_back(0);
      block_counts.push_back(kBlocksPerFile);
      for (int k = 0; k < static_cast<int>(kBlocksPerFile); ++k) {
        block_ids.push_back(static_cast<int>(kBlocksPerFile) * i + k);
      }
    }
    batch.groups = groups;
    batch.first_blocks = first_blocks;
    batch.block_counts = block_counts;
    batch.block_ids = block_ids;
  }
  Files(const Files&) = delete;

  static std::string Path(int i) { return "ns/r0/abc/" + std::to_string(i) + "-g0.kv"; }
};

struct EngineFixture {
  TempDir dir;
  Trap trap;
  std::shared_ptr<FaultOps> ops = std::make_shared<FaultOps>();
  Blocks blocks{3, kTestPageBytes, 256};
  EngineConfig config;
  std::optional<Engine> engine;
  std::vector<Report> reports;  // fetched so far

  EngineFixture() {
    config.io_threads = 3;
    config.load_only_threads = 1;
    config.lookup_threads = 2;
    config.piece_bytes = 32768;
    config.step_bytes = 8192;
    config.write_buffer_bytes = 8 * 32768;
    blocks.FillRandom(7);
  }
  ~EngineFixture() {
    trap.Open();
    engine.reset();
    CHECK(ops->unlinks_by_callers() == 0);
  }

  std::uint64_t file_bytes() const { return kBlocksPerFile * blocks.block_bytes(); }

  EngineSetup Setup() {
    EngineSetup setup;
    setup.root = dir.path();
    setup.groups.push_back(blocks.Describe());
    setup.config = config;
    setup.ops = ops;
    return setup;
  }
  void Open() { engine.emplace(Setup()); }
  void Fetch() {
    for (Report& report : engine->Poll()) reports.push_back(std::move(report));
  }
  // The report, waiting for it by polling alone: results must not need anybody's wait().
  const Report* Find(JobId id, Phase phase, double seconds = 10) {
    const auto deadline = Clock::now() + ToDuration(seconds);
    for (;;) {
      Fetch();
      for (const Report& report : reports) {
        if (report.job_id == id && report.phase == phase) return &report;
      }
      if (Clock::now() > deadline) return nullptr;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
  // The statuses of a finished job; empty if it does not finish.
  std::vector<FileStatus> Statuses(JobId id, Phase phase = Phase::kFinished) {
    const Report* report = Find(id, phase);
    return report != nullptr ? report->statuses : std::vector<FileStatus>{};
  }
  bool All(JobId id, FileStatus status, Phase phase = Phase::kFinished) {
    const auto statuses = Statuses(id, phase);
    for (const FileStatus each : statuses) {
      if (each != status) return false;
    }
    return !statuses.empty();
  }
  void Store(JobId id, int begin, int end) { engine->SubmitStore(id, Files(begin, end).batch); }
  void Load(JobId id, int begin, int end) { engine->SubmitLoad(id, Files(begin, end).batch); }
  // Waits until `reached()`.
  template <typename Condition>
  bool Eventually(Condition&& reached) {
    for (int i = 0; i < 10000; ++i) {
      if (reached()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return false;
  }
  // Files stored by an engine of its own, so that a test starts with files on disk.
  void Prepare(int begin, int end) {
    Open();
    Store(1, begin, end);
    CHECK(All(1, FileStatus::kOk));
    CHECK(engine->Close(5));
    engine.reset();
    reports.clear();
  }
};

}  // namespace kvshelf::testing
