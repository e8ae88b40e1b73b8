// The chunk reader on a whole file of hostile bytes, which may shrink or change while it is read.
// Input: 8 bytes of how to read it, then the file.
#include <fcntl.h>

#include <algorithm>
#include <memory>

#include "../tests/far_device.h"
#include "kvshelf/chunk_io.h"
#include "oracle.h"

namespace kvshelf::fuzz {
namespace {

constexpr std::uint32_t kBlocks = 12;
constexpr std::uint64_t kBlockBytesMax = 16 << 10;
constexpr std::size_t kGap = 16;  // between pages: nothing may be written there
constexpr std::byte kFill{0xEE};

// One file in memory. The descriptor is real, so that it can be closed.
class MemoryFile final : public FileOps {
 public:
  std::string bytes;
  std::uint64_t transfer_max = 0;    // 0: no limit
  std::uint64_t shrinks_to = ~0ull;  // what there is to read, though Fstat says more
  int reads_until_change = -1;
  int unlinks = 0;

  int OpenBeneath(int, const char*, int flags, mode_t) override {
    DEMAND((flags & O_NONBLOCK) != 0 || (flags & O_DIRECTORY) != 0);
    return ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  }
  ssize_t Pread(int, std::byte* data, std::size_t wanted, off_t offset) override {
    if (reads_until_change-- == 0 && !bytes.empty()) bytes[bytes.size() / 2] ^= 0x40;
    const std::uint64_t end = std::min<std::uint64_t>(bytes.size(), shrinks_to);
    const auto at = static_cast<std::uint64_t>(offset);
    if (at >= end) return 0;
    std::uint64_t count = std::min<std::uint64_t>(wanted, end - at);
    if (transfer_max > 0) count = std::min(count, transfer_max);
    std::memcpy(data, bytes.data() + at, count);
    return static_cast<ssize_t>(count);
  }
  int Fstat(int, struct stat* result) override {
    *result = {};
    result->st_mode = S_IFREG;
    result->st_size = static_cast<off_t>(bytes.size());
    return 0;
  }
  int StatAt(int, const char*, struct stat* result) override { return Fstat(0, result); }
  int UnlinkAt(int, const char*) override { return ++unlinks, 0; }
  ssize_t Pwritev(int, std::span<const iovec>, off_t) override { return Never(); }
  int Allocate(int, off_t) override { return Never(); }
  int MakeDirAt(int, const char*, mode_t) override { return Never(); }
  int RenameNoReplace(int, const char*, int, const char*) override { return Never(); }
  int LinkAt(int, const char*, int, const char*) override { return Never(); }
  int Rename(int, const char*, int, const char*) override { return Never(); }
  int SyncData(int) override { return Never(); }
  int Sync(int) override { return Never(); }
  int Close(int) override { return Never(); }
  int TouchAt(int, const char*, timespec) override { return Never(); }

 private:
  static int Never() {
    DEMAND(!"a call that a reader makes");
    return -1;
  }
};

struct Flags {
  bool seal, repair, verify, ahead, direct, other_identity, shrinks, changes;
};

Flags FlagsOf(std::uint8_t byte) {
  const auto bit = [&](int i) { return (byte >> i & 1) != 0; };
  return {!bit(0), !bit(1), !bit(2), bit(3), bit(4), bit(5), bit(6), bit(7)};
}

void RepairCodes(std::string& file) {
  const std::uint64_t piece = FieldAt<std::uint32_t>(file, 32);
  const std::uint64_t payload = FieldAt<std::uint64_t>(file, 24);
  std::uint64_t offset = kPageBytes;
  const std::size_t most = IsPackedFile(file) ? kPackedPieceCountMax : kPieceCountMax;
  for (std::uint64_t i = 0; piece > 0 && i < most && offset < file.size(); ++i) {
    if (i * piece >= payload) return;
    const auto stored = static_cast<std::uint64_t>(StoredAt(file, i));
    const std::uint64_t bytes = std::min<std::uint64_t>(stored, file.size() - offset);
    const std::uint64_t crc = SlowCrc(std::string_view(file).substr(offset, bytes));
    std::memcpy(file.data() + 512 + 8 * i, &crc, 8);
    offset += RoundUpToPage(bytes);
  }
}

void Repair(std::string& file, const Flags& flags) {
  if (file.size() < kPageBytes) return;
  if (flags.repair) RepairCodes(file);
  if (!flags.seal) return;
  const std::uint64_t crc = HeaderCrc(file);
  std::memcpy(file.data() + 16, &crc, 8);
}

// What the file says of itself, or something else; the memory that is loaded into has its shape.
Wanted WantedOf(const std::string& file, const Flags& flags, Input& input) {
  Wanted wanted;
  wanted.block_bytes = 4096;
  wanted.key = "the key of no file";
  const auto first = input.Take<std::uint8_t>();
  wanted.block_count = 1 + input.Take<std::uint8_t>() % (kBlocks - 1);
  wanted.first_block = first;
  if (file.size() < kPageBytes) return wanted;
  const std::uint64_t block_bytes = FieldAt<std::uint64_t>(file, 40);
  if (block_bytes > 0 && block_bytes <= kBlockBytesMax) wanted.block_bytes = block_bytes;
  wanted.namespace_digest = FieldAt<NamespaceDigest>(file, 64);
  wanted.key = file.substr(104, std::min<std::size_t>(FieldAt<std::uint16_t>(file, 96), 128));
  wanted.rank = FieldAt<std::uint32_t>(file, 100) + (flags.other_identity ? 1 : 0);
  wanted.geometry = FieldAt<std::uint64_t>(file, 56);
  wanted.first_block = FieldAt<std::uint32_t>(file, 48) + first % 8;
  return wanted;
}

// Two layers in one allocation, and the bytes of a block in the order of the file.
class BlockMemory {
 public:
  explicit BlockMemory(std::uint64_t block_bytes)
      : first_(block_bytes > 1 ? block_bytes / 3 + 1 : 1), second_(block_bytes - first_) {
    bytes_.assign(kBlocks * (block_bytes + 2 * kGap), kFill);
  }
  GroupMemory Describe(std::uint64_t geometry) {
    std::vector<Pages> pages = {{bytes_.data(), first_ + kGap, first_}};
    if (second_ > 0) pages.push_back({Second(), second_ + kGap, second_});
    return GroupMemory(std::move(pages), kBlocks, geometry);
  }
  std::string Take(std::size_t id) {
    std::string block(reinterpret_cast<char*>(bytes_.data() + id * (first_ + kGap)), first_);
    block.append(reinterpret_cast<char*>(Second() + id * (second_ + kGap)), second_);
    std::fill_n(bytes_.data() + id * (first_ + kGap), first_, kFill);
    std::fill_n(Second() + id * (second_ + kGap), second_, kFill);
    return block;
  }
  bool Untouched() const {
    return std::ranges::all_of(bytes_, [](std::byte byte) { return byte == kFill; });
  }

 private:
  std::byte* Second() { return bytes_.data() + kBlocks * (first_ + kGap); }

  std::uint64_t first_, second_;
  std::vector<std::byte> bytes_;
};

void LoadHostileFile(Input& input) {
  const Flags flags = FlagsOf(input.Take<std::uint8_t>());
  const auto file = std::make_shared<MemoryFile>();
  const auto step = input.Take<std::uint8_t>(), transfer = input.Take<std::uint8_t>();
  const auto change = input.Take<std::uint16_t>();
  Input where(input);
  input.Text(2);
  file->bytes = input.Text(~std::size_t{0});
  Repair(file->bytes, flags);
  file->transfer_max = transfer * 61;
  if (flags.shrinks) file->shrinks_to = std::uint64_t{change} * 8;
  if (flags.changes) file->reads_until_change = change % 64;
  const Wanted wanted = WantedOf(file->bytes, flags, where);

  static testing::FarDevice slow;
  static const std::shared_ptr<Device> host = MakeHostDevice();
  const std::uint64_t step_bytes = kPageBytes * (1 + step % 4);
  const auto context =
      MakeThreadContext(flags.ahead ? slow : *host, step_bytes, step_bytes * (1 + step / 64));
  ChunkIoOptions options;
  options.step_bytes = step_bytes;
  options.verify = flags.verify;
  options.direct = flags.direct;
  BlockMemory blocks(wanted.block_bytes);
  const GroupMemory memory = blocks.Describe(wanted.geometry);
  std::vector<std::int32_t> ids;
  for (std::uint32_t i = 0; i < wanted.block_count; ++i) {
    ids.push_back(static_cast<std::int32_t>((i * 5 + 3) % kBlocks));  // each once, in no order
  }
  const ChunkRequest request{"ns/r0/abc/abc-g0.kv", wanted.key, &memory, wanted.first_block, ids};
  const ChunkIdentity identity{wanted.namespace_digest, request.key, wanted.rank, wanted.geometry,
                               wanted.block_bytes};
  RootDir root(file, "/", "host-boot-1-2", 0750);
  CopyGate gate;
  bool removed = false;
  const std::string original = file->bytes;
  const FileResult result =
      ChunkReader(root, options, identity, request, *context).Load(gate, &removed);

  std::string loaded;
  for (const std::int32_t id : ids) loaded += blocks.Take(static_cast<std::size_t>(id));
  DEMAND(blocks.Untouched());
  const bool bad = result.status == FileStatus::kCorrupt || result.status == FileStatus::kForeign ||
                   result.status == FileStatus::kNotFound;
  // What only a later kvshelf can judge stays.
  const bool stays = result.status == FileStatus::kForeign && Sound(original) && !Known(original);
  const bool goes = bad && (flags.changes ? removed : !stays);
  DEMAND(removed == goes && file->unlinks == (goes ? 1 : 0));
  std::string payload;
  const FileStatus right = Judge(original, wanted, flags.verify, &payload);
  if (result.ok() && (flags.verify || !flags.changes)) {
    DEMAND(right == FileStatus::kOk && loaded == payload);
  }
  if (!flags.shrinks && !flags.changes) DEMAND(result.status == right);
}

}  // namespace

std::vector<std::string> Seeds(const std::vector<std::string>& vectors) {
  std::vector<std::string> seeds;
  for (const std::string& file : vectors) {
    for (const char flags : {'\0', '\3', '\4', '\10', '\20', '\30'}) {
      seeds.push_back(std::string{flags, 0, 0, 0, 0, 0, 2, 0}.substr(0, 7) + file);
    }
  }
  return seeds;
}

}  // namespace kvshelf::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes) {
  kvshelf::fuzz::Input input(data, bytes);
  kvshelf::fuzz::LoadHostileFile(input);
  return 0;
}
