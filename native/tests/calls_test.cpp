// Where the system itself gives nothing: no thread, no memory, no library, calls that are
// interrupted, forbidden or not there.
#include "calls.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <stdexcept>
#include <system_error>

#include "engine_fixture.h"
#include "kvshelf/shelf_sweep.h"

namespace kvshelf {
namespace {

using testing::Call;
using testing::Calls;
using testing::CountThreads;
using testing::EngineFixture;
using testing::Fail;
using testing::FailingCall;
using testing::Files;
using testing::TempDir;
using testing::TheCalls;

constexpr int kAlways = 1 << 30;

// A call that fails in this scope.
class Failing {
 public:
  Failing(FailingCall& call, int error, int times = kAlways, int pass = 0) : call_(call) {
    call_.Arm(error, times, pass);
  }
  ~Failing() { call_.Disarm(); }
  Failing(const Failing&) = delete;
  Failing& operator=(const Failing&) = delete;

 private:
  FailingCall& call_;
};

std::size_t CountDescriptors() {
  return static_cast<std::size_t>(
      std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}));
}

// The message of what opening throws; empty if it throws nothing.
std::string Refusal(EngineFixture& f) {
  try {
    f.Open();
  } catch (const std::exception& error) {
    return error.what();
  }
  return {};
}

void AnEngineThatLacksAThreadIsNotOpenedAndLeavesNone() {
  const std::size_t before = CountDescriptors();
  int lacking = 0;
  for (bool opened = false; !opened; ++lacking) {
    EngineFixture f;
    const Failing failing(TheCalls().make_thread, EAGAIN, 1, lacking);
    try {
      f.Open();
      opened = true;
    } catch (const std::system_error& error) {
      CHECK(error.code().value() == EAGAIN);
      CHECK(f.Eventually([] { return CountThreads("kvs-") == 0; }));
    }
  }
  CHECK(lacking - 1 == 3 + 2 + 1 + 1);  // I/O, lookup, a copier, the supervisor
  CHECK(CountDescriptors() == before);
}

void AHungThreadThatCannotBeReplacedIsMissedUntilItIsBack() {
  EngineFixture f;
  f.config.io_threads = 1;
  f.Prepare(0, 2);
  f.config.load_timeout_seconds = 0.5;
  f.Open();
  f.trap.Shut();
  f.ops->SetHook(testing::Catch(Call::kRead, f.trap));
  const Failing failing(TheCalls().make_thread, EAGAIN);
  f.Load(1, 0, 1);
  CHECK(f.All(1, FileStatus::kTimedOut));
  CHECK(f.Eventually([&] { return f.engine->Stats().hung_threads == 1; }));
  CHECK(f.Eventually([&] { return TheCalls().make_thread.asked() > 0; }));
  f.Load(2, 0, 1);
  CHECK(f.All(2, FileStatus::kTimedOut));
  f.engine->SubmitLookup(3, {Files::Path(1)});  // by other threads
  CHECK(f.All(3, FileStatus::kOk));
  f.trap.Open();
  CHECK(f.Eventually([&] { return f.engine->Stats().hung_threads == 0; }));
  f.Load(4, 0, 2);
  CHECK(f.All(4, FileStatus::kOk));
  CHECK(f.engine->Close(5));
}

// With room for one file's three pieces, stores take turns; with none, they are dropped until there
// is some.
void StoresGoOnWithTheBuffersThatThereIsMemoryFor() {
  for (const int buffers : {3, 0}) {
    EngineFixture f;
    f.config.store_queue_seconds = 0.2;
    f.Open();
    {
      const Failing failing(TheCalls().aligned_memory, ENOMEM, kAlways, buffers);
      f.Store(1, 0, 3);
      const auto statuses = f.Statuses(1);
      CHECK(statuses.size() == 3);
      for (std::size_t i = 0; i < statuses.size(); ++i) {
        const bool ok = statuses[i] == FileStatus::kOk;
        CHECK(ok || statuses[i] == FileStatus::kDropped);
        CHECK(f.dir.Exists(Files::Path(static_cast<int>(i))) == ok);
      }
      const auto stored = std::count(statuses.begin(), statuses.end(), FileStatus::kOk);
      CHECK(buffers > 0 ? stored > 0 : stored == 0);
    }
    f.Store(2, 10, 11);
    CHECK(f.All(2, FileStatus::kOk));
    CHECK(f.Eventually([&] { return f.engine->Stats().write_buffer_used_bytes == 0; }));
    CHECK(f.engine->Close(5) && f.dir.CountFiles("ns/tmp") == 0);
  }
}

void AProbeWithoutMemoryFailsAlone() {
  EngineFixture f;
  f.Prepare(0, 1);
  f.Open();
  {
    const Failing failing(TheCalls().aligned_memory, ENOMEM);
    f.engine->SubmitProbe(1, {Files::Path(0)}, 1 << 20);
    CHECK(f.All(1, FileStatus::kIoError));
    CHECK(f.Find(1, Phase::kFinished)->errnos == std::vector<int>{ENOMEM});
  }
  f.engine->SubmitProbe(2, {Files::Path(0)}, 1 << 20);
  CHECK(f.All(2, FileStatus::kOk));
}

void DirectIoThatDoesNotWorkIsRefusedOrLeftAlone() {
  const std::pair<Call, int> faults[] = {
      {Call::kOpen, EINVAL}, {Call::kWrite, EIO}, {Call::kRead, EINVAL}};
  for (const auto& [call, error] : faults) {
    EngineFixture f;
    f.ops->SetHook(Fail(call, error));
    f.config.direct = Direct::kOn;
    CHECK(Refusal(f).find(f.dir.path() + ": O_DIRECT does not work here") == 0);
    CHECK(f.dir.CountFiles(".") == 0);  // what it was tried with is gone
    f.config.direct = Direct::kAuto;
    CHECK(Refusal(f).empty() && !f.engine->Stats().direct);
    f.ops->SetHook({});
    f.Store(1, 0, 1);
    CHECK(f.All(1, FileStatus::kOk));
  }
}

void AKeyWithoutALibraryIsRefused() {
  EngineFixture f;
  const auto open = [&] {
    EngineSetup setup;
    setup.root = f.dir.path();
    setup.auth_key = std::string(32, 'k');
    Engine engine(std::move(setup));
  };
  {
    const Failing failing(TheCalls().open_library, ENOENT);
    try {
      open();
      CHECK(false);
    } catch (const std::runtime_error& error) {
      CHECK(std::string(error.what()).find("libcrypto.so.3: not found") != std::string::npos);
    }
  }
  open();  // once it has been installed
}

// A file and the calls that open it.
struct Opening {
  TempDir dir;
  std::shared_ptr<FileOps> ops = MakePosixFileOps(true);
  UniqueFd root;

  Opening() {
    dir.Write("ns/file", "bytes");
    root = UniqueFd(::open(dir.path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  }
  UniqueFd Open(int flags) const {
    return UniqueFd(ops->OpenBeneath(root.get(), "ns/file", O_RDONLY | flags, 0));
  }
};

// Files of another user: O_NOATIME is only for the owner. Asked once, not with every file.
void ReadsOfOthersFilesAreNotHidden() {
  const Opening opening;
  const Failing failing(TheCalls().open_unseen, EPERM);
  const UniqueFd file = opening.Open(O_NOATIME);
  CHECK(file && (::fcntl(file.get(), F_GETFL) & O_NOATIME) == 0);
  const int asked = TheCalls().open_unseen.asked();
  CHECK(opening.Open(O_NOATIME) && TheCalls().open_unseen.asked() == asked);
}

void ACallThatTheKernelLacksIsAskedForOnce() {
  const Opening opening;
  const Failing failing(TheCalls().open_beneath, ENOSYS);
  CHECK(opening.Open(0) && opening.Open(0) && TheCalls().open_beneath.asked() == 1);
}

void ACallThatIsForbiddenIsDoneWithout() {
  const Opening opening;
  const Failing failing(TheCalls().open_beneath, EPERM, 1);
  CHECK(opening.Open(0) && TheCalls().open_beneath.asked() == 1);
  CHECK(opening.Open(0) && TheCalls().open_beneath.asked() == 2);  // it was about that file
}

// Container profiles choose the errno; a file may have the same reason.
void ARefusalIsToldFromAFilesOwnError() {
  for (const int error : {EACCES, EINVAL, EOPNOTSUPP, ENOTTY}) {
    const Opening forbidden;
    {
      const Failing failing(TheCalls().open_beneath, error);
      CHECK(forbidden.Open(0) && TheCalls().open_beneath.asked() == 2);
      CHECK(forbidden.Open(0) && TheCalls().open_beneath.asked() == 2);
    }
    const Opening opening;
    const Failing failing(TheCalls().open_beneath, error, 1);
    CHECK(opening.ops->OpenBeneath(opening.root.get(), "ns/file", O_RDONLY, 0) == -error);
    CHECK(opening.Open(0) && TheCalls().open_beneath.asked() == 3);
  }
}

void AWalkThatRacesWithARenameIsTriedAgainButNotForEver() {
  const Opening opening;
  {
    const Failing failing(TheCalls().open_beneath, EAGAIN, 3);
    CHECK(opening.Open(0) && TheCalls().open_beneath.asked() == 4);
  }
  const Failing failing(TheCalls().open_beneath, EAGAIN);
  CHECK(opening.ops->OpenBeneath(opening.root.get(), "ns/file", O_RDONLY, 0) == -EAGAIN);
}

void AnInterruptedCallIsMadeAgainButACloseIsNot() {
  const Opening opening;
  UniqueFd file = opening.Open(0);
  std::byte bytes[5] = {};
  {
    const Failing failing(TheCalls().read, EINTR, 3);
    CHECK(opening.ops->Pread(file.get(), bytes, sizeof(bytes), 0) == 5);
    CHECK(TheCalls().read.asked() == 4 && std::memcmp(bytes, "bytes", 5) == 0);
  }
  TheCalls().closing = file.get();
  const Failing failing(TheCalls().close, EINTR);
  CHECK(opening.ops->Close(file.Release()) == -EINTR && TheCalls().close.asked() == 1);
  TheCalls().closing = -1;
}

// What cannot be listed keeps what was known of it, and its descriptor is closed.
void AFolderThatCannotBeListedIsAFault() {
  TempDir dir;
  const std::string chunk = "ns/r0/012/0123456789abcdef-g0.kv";
  dir.Write("ns/namespace.json", "{}");
  dir.Write(chunk, "0123456789");
  ShelfSweep sweep(MakePosixFileOps(true), dir.path(), {});
  sweep.SetNamespaces({"ns"});
  CHECK(sweep.Scan(true, 60).finished && sweep.namespaces()[0].amount.bytes == 10);
  const std::size_t before = CountDescriptors();
  // Each call of a scan fails in turn: of the namespace, the rank and the leaf, the first and the
  // last of each.
  int failed = 0;
  for (int pass = 0; pass < 8; ++pass) {
    const Failing failing(TheCalls().list, ENOMEM, 1, pass);
    SweepReport report = sweep.Scan(true, 60);
    const bool is_hit = TheCalls().list.asked() > pass;
    failed += is_hit ? 1 : 0;
    CHECK(report.finished && report.faults[ENOMEM] == (is_hit ? 1U : 0U));
    CHECK(sweep.namespaces()[0].amount.files == 1 && sweep.namespaces()[0].amount.bytes == 10);
  }
  CHECK(failed >= 2);
  CHECK(sweep.Scan(true, 60).faults.empty() && sweep.namespaces()[0].amount.bytes == 10);
  CHECK(CountDescriptors() == before);
}

}  // namespace
}  // namespace kvshelf

int main() {
  using namespace kvshelf;
  return testing::RunTests({
      {"a key without a library is refused", AKeyWithoutALibraryIsRefused},  // before it is open
      {"an engine that lacks a thread is not opened",
       AnEngineThatLacksAThreadIsNotOpenedAndLeavesNone},
      {"a hung thread that cannot be replaced is missed",
       AHungThreadThatCannotBeReplacedIsMissedUntilItIsBack},
      {"stores go on with the buffers that there is memory for",
       StoresGoOnWithTheBuffersThatThereIsMemoryFor},
      {"a probe without memory fails alone", AProbeWithoutMemoryFailsAlone},
      {"direct I/O that does not work is refused or left alone",
       DirectIoThatDoesNotWorkIsRefusedOrLeftAlone},
      {"reads of others' files are not hidden", ReadsOfOthersFilesAreNotHidden},
      {"a call that the kernel lacks is asked for once", ACallThatTheKernelLacksIsAskedForOnce},
      {"a call that is forbidden is done without", ACallThatIsForbiddenIsDoneWithout},
      {"a refusal is told from a file's own error", ARefusalIsToldFromAFilesOwnError},
      {"a walk that races with a rename is tried again",
       AWalkThatRacesWithARenameIsTriedAgainButNotForEver},
      {"an interrupted call is made again, but a close is not",
       AnInterruptedCallIsMadeAgainButACloseIsNot},
      {"a folder that cannot be listed is a fault", AFolderThatCannotBeListedIsAFault},
  });
}
