#include "kvshelf/probe.h"

#include <cerrno>
#include <cstring>
#include <vector>

namespace kvshelf {
namespace {

constexpr std::uint64_t kProbedBlocks = 2;
constexpr std::uint64_t kBlockBytes = kProbeBytes / kProbedBlocks;

// A directory, and memory with a chunk in it.
class Trial {
 public:
  Trial(const std::string& directory, mode_t file_mode, mode_t dir_mode)
      : root_(MakePosixFileOps(), directory, OwnTempPrefix(), dir_mode),
        stored_(kProbeBytes),
        loaded_(kProbeBytes),
        device_(MakeHostDevice()),
        context_(MakeThreadContext(*device_, options_.step_bytes, options_.step_bytes)) {
    options_.file_mode = file_mode;
    options_.remove_bad = false;
    for (std::size_t at = 0; at < stored_.size(); ++at) {
      stored_[at] = static_cast<std::byte>(at * 2654435761u >> 13);
    }
  }

  ProbeReport Run() {
    ProbeReport report;
    StoreTwice(report);
    const RootHabits& habits = root_.habits();
    report.naming = habits.naming;
    report.rename_error = habits.rename_error;
    report.link_error = habits.link_error;
    report.allocate_error = habits.allocate_error;
    report.order = habits.order;
    if (!report.stored.ok()) return report;
    report.loaded = Load();
    Touch(report);
    report.removed = Remove(kPath);
    options_.durability = Durability::kData;
    const TimePoint started = Clock::now();
    report.synced_data = StoreAndRemove();
    report.sync_seconds = Seconds(Clock::now() - started).count();
    options_.durability = Durability::kFull;
    report.synced_full = StoreAndRemove();
    report.direct_error = -root_.ProbeDirect();
    return report;
  }

 private:
  static constexpr char kPath[] = "probe/r0/abc/abcdef0123456789-g0.kv";

  ChunkRequest Request(const GroupMemory& memory) const {
    return {kPath, std::string("probed chunk"), &memory, 0, ids_};
  }
  static GroupMemory Memory(std::vector<std::byte>& bytes) {
    return GroupMemory({{bytes.data(), kBlockBytes, kBlockBytes}}, kProbedBlocks, 0);
  }
  static ChunkIdentity IdentityOf(const ChunkRequest& request) {
    return {{}, request.key, 0, request.memory->geometry(), request.memory->block_bytes()};
  }

  FileResult Write(ChunkWriter& writer) {
    FileResult result;
    for (std::uint64_t at = 0; result.ok() && at < kProbeBytes; at = writer.written_bytes()) {
      const std::uint64_t end = AlignedEnd(at, options_.step_bytes, kProbeBytes);
      std::memcpy(context_->step.data(), stored_.data() + at, end - at);
      result = writer.WriteStaged(context_->step.data(), end - at);
    }
    CopyGate gate;
    return result.ok() ? writer.Publish(gate, *context_) : result;
  }

  // Of two writers that begin together the second finds the name taken.
  void StoreTwice(ProbeReport& report) {
    const GroupMemory memory = Memory(stored_);
    const ChunkRequest request = Request(memory);
    ChunkWriter first(root_, options_, IdentityOf(request), request);
    ChunkWriter second(root_, options_, IdentityOf(request), request);
    if (first.Begin(&report.stored, *context_) == ChunkWriter::Start::kFailed) return;
    if (second.Begin(&report.stored, *context_) == ChunkWriter::Start::kFailed) return;
    report.stored = Write(first);
    struct stat before{};
    struct stat after{};
    if (!report.stored.ok() || root_.StatBeneath(kPath, &before) < 0) return;
    const RootHabits& habits = root_.habits();
    const int rename_error = habits.rename_error;
    const int link_error = habits.link_error;
    report.stored_again = Write(second);
    root_.habits().rename_error = rename_error;  // of the name that was free
    root_.habits().link_error = link_error;
    report.replaced = root_.StatBeneath(kPath, &after) < 0 || before.st_ino != after.st_ino;
  }

  FileResult StoreAndRemove() {
    const GroupMemory memory = Memory(stored_);
    const ChunkRequest request = Request(memory);
    ChunkWriter writer(root_, options_, IdentityOf(request), request);
    FileResult result;
    if (writer.Begin(&result, *context_) == ChunkWriter::Start::kReady) result = Write(writer);
    const FileResult removed = Remove(kPath);
    return result.ok() ? removed : result;
  }

  FileResult Load() {
    const GroupMemory memory = Memory(loaded_);
    const ChunkRequest request = Request(memory);
    CopyGate gate;
    bool removed = false;
    const FileResult result =
        ChunkReader(root_, options_, IdentityOf(request), request, *context_).Load(gate, &removed);
    if (result.ok() && loaded_ != stored_) return {FileStatus::kCorrupt, 0};
    return result;
  }

  void Touch(ProbeReport& report) {
    struct stat found{};
    int error = root_.TouchBeneath(kPath, kProbeTime);
    if (error >= 0) error = root_.StatBeneath(kPath, &found);
    report.touch_error = error < 0 ? -error : 0;
    report.touched = found.st_mtim;
  }

  FileResult Remove(const std::string& path) {
    const auto [folder, name] = SplitPath(path);
    const UniqueFd holder(root_.OpenFolder(folder));
    if (!holder) return FileResult::IoError(-holder.get());
    const int removed = root_.ops().UnlinkAt(holder.get(), name.c_str());
    return removed < 0 && removed != -ENOENT ? FileResult::IoError(-removed) : FileResult{};
  }

  RootDir root_;
  ChunkIoOptions options_;
  std::vector<std::byte> stored_, loaded_;
  std::vector<std::int32_t> ids_{0, 1};
  std::shared_ptr<Device> device_;
  std::shared_ptr<ThreadContext> context_;
};

}  // namespace

ProbeReport Probe(const std::string& directory, mode_t file_mode, mode_t dir_mode) {
  return Trial(directory, file_mode, dir_mode).Run();
}

}  // namespace kvshelf
