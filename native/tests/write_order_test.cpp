// File systems that take a file's bytes in their order only, and what a probe finds there.
#include <sys/stat.h>

#include <cerrno>
#include <string>

#include "check.h"
#include "chunk_fixture.h"
#include "kvshelf/probe.h"

namespace kvshelf {
namespace {

using testing::Call;
using testing::Fail;
using testing::kPath;
using Fixture = testing::ChunkFixture;

void AChunkIsTheSameInWhateverOrderItIsWritten() {
  for (const std::size_t transfer : {0, 1000}) {
    for (const int error : {EINVAL, EOPNOTSUPP, ESPIPE, EIO}) {
      Fixture any;
      CHECK(any.Store().ok() && any.root.habits().order == WriteOrder::kUnknown);
      Fixture f;
      f.ops->SetInOrder(error);
      f.ops->SetTransferMax(transfer);
      for (int round = 0; round < 2; ++round) {  // the first finds it out, the second knows
        CHECK(f.Store().ok() && f.Load() == FileStatus::kOk);
        CHECK(f.root.habits().order == WriteOrder::kInOrder);
        CHECK(f.dir.Read(kPath) == any.dir.Read(kPath));
        CHECK(f.dir.CountFiles("ns/tmp") == 0);
        std::filesystem::remove(f.dir / kPath);
      }
    }
  }
}

// The payload is there when the header is refused.
void AHeaderThatIsRefusedIsWrittenFirst() {
  Fixture any;
  CHECK(any.Store().ok());
  for (const std::size_t transfer : {0, 1000}) {
    Fixture f;
    f.ops->SetInOrder(EINVAL, false);
    f.ops->SetTransferMax(transfer);
    f.ops->SetHook(Fail(Call::kAllocate, EOPNOTSUPP));
    for (int round = 0; round < 2; ++round) {
      CHECK(f.Store().ok() && f.Load() == FileStatus::kOk);
      CHECK(f.root.habits().order == WriteOrder::kInOrder);
      CHECK(f.dir.Read(kPath) == any.dir.Read(kPath));
      CHECK(f.dir.CountFiles("ns/tmp") == 0);
      std::filesystem::remove(f.dir / kPath);
    }
  }
}

void RoomThatCannotBeReservedIsNoMatter() {
  Fixture f;
  f.ops->SetInOrder(EINVAL);
  f.ops->SetHook(Fail(Call::kAllocate, EOPNOTSUPP));
  CHECK(f.Store().ok() && f.Load() == FileStatus::kOk);
}

void StorageThatFailsIsNotTakenForOneInOrder() {
  for (const int error : {EIO, EINVAL, ENOSPC, EDQUOT}) {
    Fixture f;
    f.ops->SetHook(Fail(Call::kWrite, error));
    CHECK(f.Store().status == FileStatus::kIoError);
    CHECK(f.root.habits().order == WriteOrder::kUnknown && f.dir.CountFiles("ns/tmp") == 0);
    f.ops->SetHook({});
    CHECK(f.Store().ok() && f.Load() == FileStatus::kOk);
  }
}

void OneWriteThatFailsIsNotTakenForOneInOrder() {
  Fixture f;
  bool once = true;
  f.ops->SetHook(
      [&](Call call) { return call == Call::kWrite && std::exchange(once, false) ? -EIO : 0; });
  CHECK(f.Store().status == FileStatus::kIoError);
  CHECK(f.root.habits().order == WriteOrder::kAny && f.dir.CountFiles("ns/tmp") == 0);
}

void AFailureWhileAFileIsWrittenInOrderLeavesNothing() {
  Fixture f;
  f.ops->SetInOrder(EINVAL);
  CHECK(f.Store().ok());
  std::filesystem::remove(f.dir / kPath);
  f.ops->SetHook(Fail(Call::kWrite, ENOSPC));
  CHECK(f.Store().error == ENOSPC && f.dir.CountFiles("ns/tmp") == 0);
}

void TheWayToANameIsRemembered() {
  for (const int error : {EINVAL, ENOSYS, EOPNOTSUPP, EPERM, ENOTTY}) {
    Fixture f;
    CHECK(f.Store().ok() && f.root.habits().naming == Naming::kRenameNoReplace);
    std::filesystem::remove(f.dir / kPath);
    f.ops->SetHook(Fail(Call::kRename, error));
    CHECK(f.Store().ok() && f.root.habits().naming == Naming::kLink);
    CHECK(f.root.habits().rename_error == error && f.root.habits().link_error == 0);
    std::filesystem::remove(f.dir / kPath);
    f.ops->SetHook([=](Call call) {
      return call == Call::kRename ? -error : call == Call::kLink ? -EPERM : 0;
    });
    CHECK(f.Store().ok() && f.root.habits().naming == Naming::kRename);
    CHECK(f.root.habits().link_error == EPERM);
  }
}

void AProbeFindsALocalFileSystemWhole() {
  const testing::TempDir dir;
  const ProbeReport report = Probe(dir.path(), 0640, 0750);
  CHECK(report.stored.ok() && report.stored_again.ok() && report.loaded.ok());
  CHECK(report.removed.ok() && report.synced_data.ok() && report.synced_full.ok());
  CHECK(!report.replaced && report.naming == Naming::kRenameNoReplace);
  CHECK(report.touch_error == 0 && report.touched.tv_sec == kProbeTime.tv_sec);
  CHECK(dir.CountFiles("probe/r0/abc") == 0 && dir.CountFiles("probe/tmp") == 0);
}

}  // namespace
}  // namespace kvshelf

int main() {
  using namespace kvshelf;
  return testing::RunTests({
      {"a chunk is the same in whatever order it is written",
       AChunkIsTheSameInWhateverOrderItIsWritten},
      {"a header that is refused is written first", AHeaderThatIsRefusedIsWrittenFirst},
      {"room that cannot be reserved is no matter", RoomThatCannotBeReservedIsNoMatter},
      {"storage that fails is not taken for one in order", StorageThatFailsIsNotTakenForOneInOrder},
      {"one write that fails is not taken for one in order",
       OneWriteThatFailsIsNotTakenForOneInOrder},
      {"a failure while a file is written in order leaves nothing",
       AFailureWhileAFileIsWrittenInOrderLeavesNothing},
      {"the way to a name is remembered", TheWayToANameIsRemembered},
      {"a probe finds a local file system whole", AProbeFindsALocalFileSystemWhole},
  });
}
