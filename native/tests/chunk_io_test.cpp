#include "kvshelf/chunk_io.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <numeric>

#include "check.h"
#include "chunk_fixture.h"

namespace kvshelf {
namespace {

using testing::Blocks;
using testing::Call;
using testing::Fail;
using testing::FaultOps;
using testing::kPath;
using testing::TempDir;
using Fixture = testing::ChunkFixture;

void WhatWasStoredIsLoaded() {
  Fixture f;
  const std::string before = f.blocks.All();
  CHECK(f.Store().ok());
  const std::string file = f.dir.Read(kPath);
  CHECK(file.size() == kPageBytes + RoundUpToPage(f.request.payload_bytes()));
  CHECK(file.substr(kPageBytes, f.request.payload_bytes()) == f.Payload());
  CHECK(f.dir.CountFiles("ns/tmp") == 0);
  for (const std::int32_t id : f.ids) {
    CHECK(!f.blocks.Block(static_cast<std::size_t>(id)).empty());
  }
  Blocks other(3, 3000, 20);
  const GroupMemory memory = other.Describe();
  f.request.memory = &memory;
  CHECK(f.Load() == FileStatus::kOk);
  for (const std::int32_t id : f.ids) {
    CHECK(other.Block(static_cast<std::size_t>(id)) ==
          f.blocks.Block(static_cast<std::size_t>(id)));
  }
  CHECK(other.Block(2) == std::string(f.blocks.block_bytes(), '\0'));
  CHECK(f.blocks.All() == before);
}

void PartsAreLoadedFromTheirPieces() {
  Fixture f;
  f.request.first_block = 2;  // the file holds blocks 2 to 7
  CHECK(f.Store().ok());
  const std::vector<std::int32_t> all = f.ids;
  for (std::uint32_t first = 2; first < 8; ++first) {
    for (std::uint32_t count = 1; first + count <= 8; ++count) {
      Blocks other(3, 3000, 20);
      const GroupMemory memory = other.Describe();
      std::vector<std::int32_t> ids(count);
      std::iota(ids.begin(), ids.end(), 10);
      f.request = {kPath, f.request.key, &memory, first, ids};
      CHECK(f.Load() == FileStatus::kOk);
      for (std::uint32_t i = 0; i < count; ++i) {
        CHECK(other.Block(10 + i) == f.blocks.Block(static_cast<std::size_t>(all[first - 2 + i])));
      }
    }
  }
}

void EveryDamagedByteIsFoundAndTheFileRemoved() {
  Fixture f;
  CHECK(f.Store().ok());
  const std::string good = f.dir.Read(kPath);
  const std::size_t end = kPageBytes + f.request.payload_bytes();
  for (std::size_t at = 0; at < end; at += at < 4096 ? 13 : 701) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x10);
    f.dir.Write(kPath, bad);
    CHECK(f.Load() == FileStatus::kCorrupt);
    CHECK(f.removed && !f.dir.Exists(kPath));
  }
  for (const std::size_t length : {std::size_t{0}, std::size_t{100}, std::size_t{4096}, end - 1,
                                   good.size() - 4096, good.size() - 1}) {
    f.dir.Write(kPath, good.substr(0, length));
    CHECK(f.Load() == FileStatus::kCorrupt);
  }
  f.dir.Write(kPath, good + std::string(4096, '\0'));
  CHECK(f.Load() == FileStatus::kCorrupt);
  f.options.remove_bad = false;
  f.dir.Write(kPath, good + "x");
  CHECK(f.Load() == FileStatus::kCorrupt && !f.removed && f.dir.Exists(kPath));
}

void OthersFilesAreForeignOrNotThere() {
  Fixture f;
  CHECK(f.Load() == FileStatus::kNotFound);
  CHECK(f.Store().ok());
  f.options.remove_bad = false;
  f.identity.rank = 1;
  CHECK(f.Load() == FileStatus::kForeign);
  f.identity.rank = 0;
  f.request.first_block = 1;  // wants blocks 1 to 6 of 0 to 5
  CHECK(f.Load() == FileStatus::kNotFound && !f.removed);
  f.options.remove_bad = true;
  CHECK(f.Load() == FileStatus::kNotFound && f.removed && !f.dir.Exists(kPath));
}

void OnlyRegularFilesAreReadAndNoLinkIsFollowed() {
  Fixture f;
  CHECK(f.Store().ok());
  std::filesystem::rename(f.dir / kPath, f.dir / "elsewhere");
  std::filesystem::create_symlink(f.dir / "elsewhere", f.dir / kPath);
  CHECK(f.Load() == FileStatus::kCorrupt && !f.removed && f.dir.Exists(kPath));
  std::filesystem::remove(f.dir / kPath);
  CHECK(::mkfifo((f.dir / kPath).c_str(), 0600) == 0);
  CHECK(f.Load() == FileStatus::kCorrupt && !f.removed && f.dir.Exists(kPath));
  std::filesystem::remove(f.dir / kPath);
  std::filesystem::create_directory(f.dir / kPath);
  CHECK(f.Load() == FileStatus::kCorrupt && !f.removed);
  // A link in the middle of the path.
  std::filesystem::rename(f.dir / "ns/r0", f.dir / "ns/real");
  std::filesystem::create_symlink("real", f.dir / "ns/r0");
  f.request.path = "ns/r0/abc/other.kv";
  CHECK(f.Load() == FileStatus::kCorrupt);
  CHECK(f.Store().error == ELOOP);
  CHECK(f.dir.CountFiles("ns/tmp") == 0);
}

void PathsAreWalkedSafelyWithoutOpenat2() {
  for (const bool openat2 : {true, false}) {
    TempDir dir;
    const auto ops = MakePosixFileOps(openat2);
    const UniqueFd root(::open(dir.path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    dir.Write("ns/r0/file", "x");
    std::filesystem::create_symlink("file", dir / "ns/r0/link");
    std::filesystem::create_symlink("r0", dir / "ns/folder");
    auto open = [&](const char* path, int flags) {
      const UniqueFd fd(ops->OpenBeneath(root.get(), path, flags, 0600));
      CHECK(!fd || (::fcntl(fd.get(), F_GETFD) & FD_CLOEXEC) != 0);
      return fd.get() < 0 ? fd.get() : 0;
    };
    CHECK(open("ns/r0/file", O_RDONLY) == 0 && open("ns", O_RDONLY | O_DIRECTORY) == 0);
    CHECK(open("ns/r0/new", O_WRONLY | O_CREAT | O_EXCL) == 0 && dir.Exists("ns/r0/new"));
    CHECK(open("ns/r0/absent", O_RDONLY) == -ENOENT && open("ns/r0/link", O_RDONLY) == -ELOOP);
    CHECK(open("ns/folder/file", O_RDONLY) < 0);
    CHECK(open("../outside", O_RDONLY) == -EXDEV);
  }
}

void FailuresAreReportedAndLeaveNothing() {
  const std::pair<Call, int> faults[] = {{Call::kOpen, EACCES},  {Call::kAllocate, EDQUOT},
                                         {Call::kWrite, ENOSPC}, {Call::kSync, EIO},
                                         {Call::kClose, EDQUOT}, {Call::kRename, EIO}};
  for (const auto& [call, error] : faults) {
    Fixture f;
    f.options.durability = Durability::kFull;
    f.ops->SetHook(Fail(call, error));
    const FileResult result = f.Store();
    CHECK(result.status == FileStatus::kIoError && result.error == error);
    CHECK(!f.dir.Exists(kPath) && f.dir.CountFiles("ns/tmp") == 0);
  }
  Fixture f;
  CHECK(f.Store().ok());
  f.ops->SetHook(Fail(Call::kRead, EIO));
  CHECK(f.Load() == FileStatus::kIoError && f.dir.Exists(kPath));
  f.ops->SetHook(Fail(Call::kRead, ESTALE));
  CHECK(f.Load() == FileStatus::kNotFound && f.dir.Exists(kPath));
}

// NFS and JuiceFS send data on close: under its name another node would read zeros before.
void AFileIsClosedBeforeItGetsItsName() {
  Fixture f;
  bool closed = false;
  f.ops->SetHook([&](Call call) {
    if (call == Call::kClose) closed = true;
    if (call == Call::kRename) CHECK(closed);
    return 0;
  });
  CHECK(f.Store().ok() && closed && f.Load() == FileStatus::kOk);
}

// Whoever made a folder, or stored the same chunk first, may not have synced yet.
void FullDurabilitySyncsTheFileAndEveryFolderAbove() {
  Fixture other;
  CHECK(other.Store().ok());
  const std::string theirs = other.dir.Read(kPath);
  for (const bool taken : {false, true}) {
    Fixture f;
    f.options.durability = Durability::kFull;
    int syncs = 0;
    f.ops->SetHook([&](Call call) {
      if (call == Call::kSync) ++syncs;
      if (call == Call::kRename && taken) f.dir.Write(kPath, theirs);
      return 0;
    });
    CHECK(f.Store().ok());
    CHECK(syncs == 1 + 4);  // the file; abc, r0, ns and the root
  }
}

void FilesAreWrittenWhereAllocationIsNotSupported() {
  Fixture f;
  f.ops->SetHook(Fail(Call::kAllocate, EOPNOTSUPP));
  CHECK(f.Store().ok() && f.Load() == FileStatus::kOk);
}

void StepsEndWhereFoliosDo() {
  CHECK(AlignedEnd(0, 8192, 100000) == 4096 && AlignedEnd(4096, 8192, 100000) == 12288);
  CHECK(AlignedEnd(0, 4096, 100000) == 4096 && AlignedEnd(98304, 8192, 100000) == 100000);
  for (const std::uint64_t unit : {4096, 12288, 262144}) {
    for (std::uint64_t at = 0; at < 1000000;) {
      const std::uint64_t end = AlignedEnd(at, unit, 1000000);
      CHECK(end > at && end - at <= unit);
      CHECK(end == 1000000 || (kPageBytes + end) % unit == 0);
      at = end;
    }
  }
}

void ShortTransfersAreContinued() {
  Fixture f;
  f.ops->SetTransferMax(777);
  CHECK(f.Store().ok());
  CHECK(f.dir.Read(kPath).substr(kPageBytes, f.request.payload_bytes()) == f.Payload());
  CHECK(f.Load() == FileStatus::kOk);
}

void ARevokedGateStopsCopiesAndPublication() {
  Fixture f;
  CHECK(f.Store().ok());
  const std::string before = f.blocks.All();
  CopyGate gate;
  gate.Revoke();
  CHECK(!ChunkReader(f.root, f.options, f.identity, f.request, f.context)
             .Load(gate, &f.removed)
             .ok());
  CHECK(f.blocks.All() == before && f.dir.Exists(kPath));
  f.request.path = "ns/r0/abc/other-g0.kv";
  {
    FileResult result;
    ChunkWriter writer(f.root, f.options, f.identity, f.request);
    CHECK(writer.Begin(&result, f.context) == ChunkWriter::Start::kReady);
    CHECK(f.dir.CountFiles("ns/tmp") == 1);
    CHECK(!writer.Publish(gate, f.context).ok());
  }
  CHECK(!f.dir.Exists(f.request.path) && f.dir.CountFiles("ns/tmp") == 0);
}

void AGoodFileThatTookABadOnesNameIsNotRemoved() {
  Fixture f;
  CHECK(f.Store().ok());
  const std::string good = f.dir.Read(kPath);
  std::string bad = good;
  bad[5000] ^= 1;
  f.dir.Write(kPath, bad);
  f.ops->SetHook([&](Call call) {
    if (call == Call::kRead) {  // while the bad one is read, somebody replaces it
      f.dir.Write("ns/new", good);
      std::filesystem::rename(f.dir / "ns/new", f.dir / kPath);
    }
    return 0;
  });
  CHECK(f.Load() == FileStatus::kCorrupt && !f.removed && f.dir.Read(kPath) == good);
}

}  // namespace
}  // namespace kvshelf

int main() {
  using namespace kvshelf;
  return testing::RunTests({
      {"what was stored is loaded", WhatWasStoredIsLoaded},
      {"parts are loaded from their pieces", PartsAreLoadedFromTheirPieces},
      {"every damaged byte is found and the file removed",
       EveryDamagedByteIsFoundAndTheFileRemoved},
      {"others' files are foreign or not there", OthersFilesAreForeignOrNotThere},
      {"only regular files are read and no link is followed",
       OnlyRegularFilesAreReadAndNoLinkIsFollowed},
      {"paths are walked safely without openat2", PathsAreWalkedSafelyWithoutOpenat2},
      {"failures are reported and leave nothing", FailuresAreReportedAndLeaveNothing},
      {"a file is closed before it gets its name", AFileIsClosedBeforeItGetsItsName},
      {"full durability syncs the file and every folder above",
       FullDurabilitySyncsTheFileAndEveryFolderAbove},
      {"files are written where allocation is not supported",
       FilesAreWrittenWhereAllocationIsNotSupported},
      {"steps end where folios do", StepsEndWhereFoliosDo},
      {"short transfers are continued", ShortTransfersAreContinued},
      {"a revoked gate stops copies and publication", ARevokedGateStopsCopiesAndPublication},
      {"a good file that took a bad one's name is not removed",
       AGoodFileThatTookABadOnesNameIsNotRemoved},
  });
}
