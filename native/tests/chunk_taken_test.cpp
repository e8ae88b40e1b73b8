#include <sys/stat.h>

#include <cerrno>
#include <filesystem>
#include <functional>
#include <utility>

#include "check.h"
#include "chunk_fixture.h"

// What a store makes of a name that is taken.
namespace kvshelf {
namespace {

using testing::Call;
using testing::Fail;
using testing::kPath;
using testing::TempDir;
using Fixture = testing::ChunkFixture;

// A file of another identity, key or length, and what is no chunk at all.
std::vector<std::string> BadFiles() {
  Fixture f;
  CHECK(f.Store().ok());
  const std::string good = f.dir.Read(kPath);
  std::vector<std::string> bad = {"",
                                  "short",
                                  std::string(3 * kPageBytes, 'x'),
                                  good.substr(0, good.size() - 1),
                                  good.substr(0, kPageBytes),
                                  good + std::string(kPageBytes, '\0')};
  for (const std::size_t at : {std::size_t{0}, std::size_t{100}}) {
    bad.push_back(good);
    bad.back()[at] ^= 1;
  }
  f.request.key = "another chunk's";
  f.request.path = "ns/r0/abc/another.kv";
  f.identity.key = f.request.key;
  CHECK(f.Store().ok());
  bad.push_back(f.dir.Read(f.request.path));
  f.identity.key = f.request.key = "key of a chunk";
  f.request.path = "ns/r0/abc/third.kv";
  f.identity.namespace_digest[0] = 1;
  CHECK(f.Store().ok());
  bad.push_back(f.dir.Read(f.request.path));
  return bad;
}

void AChunkThatExistsIsLeftAlone() {
  Fixture f;
  CHECK(f.Store().ok());
  std::string other = f.dir.Read(kPath);
  other[2 * kPageBytes] ^= 1;  // of the payload: found by the load, not by a store
  f.dir.Write(kPath, other);
  CHECK(f.Store().ok() && !f.removed && f.dir.Read(kPath) == other);
  std::size_t reads = 0;
  f.ops->SetHook([&](Call call) {
    reads += call == Call::kRead ? 1 : 0;
    return 0;
  });
  CHECK(f.Store().ok() && reads == 1);  // its header
  std::filesystem::remove(f.dir / kPath);
  reads = 0;
  CHECK(f.Store().ok() && reads == 0);  // a new chunk costs nothing more
}

void ABadFileThatExistsIsStoredAnew() {
  for (const std::string& bad : BadFiles()) {
    Fixture f;
    f.dir.Write(kPath, bad);
    CHECK(f.Store().ok() && f.removed && f.Load() == FileStatus::kOk);
    f.dir.Write(kPath, bad);
    f.options.remove_bad = false;
    const FileStatus status = f.Store().status;
    CHECK(status == FileStatus::kCorrupt || status == FileStatus::kForeign);
    CHECK(!f.removed && f.dir.Read(kPath) == bad && f.dir.CountFiles("ns/tmp") == 0);
  }
}

// What has a chunk's name and is none: never removed, never followed, never said to be stored.
const std::vector<std::pair<const char*, std::function<void(const TempDir&)>>>& Obstacles() {
  static const std::vector<std::pair<const char*, std::function<void(const TempDir&)>>> all = {
      {"folder", [](const TempDir& dir) { std::filesystem::create_directories(dir / kPath); }},
      {"FIFO", [](const TempDir& dir) { CHECK(::mkfifo((dir / kPath).c_str(), 0600) == 0); }},
      {"link to a chunk",
       [](const TempDir& dir) {
         std::filesystem::create_symlink(dir / "ns/r0/abc/good.kv", dir / kPath);
       }},
      {"dangling link",
       [](const TempDir& dir) { std::filesystem::create_symlink("nowhere", dir / kPath); }},
  };
  return all;
}

void AnObstacleFailsTheStoreAndStays() {
  for (const auto& [name, make] : Obstacles()) {
    for (const bool meanwhile : {false, true}) {
      Fixture f;
      CHECK(f.Store().ok());
      std::filesystem::rename(f.dir / kPath, f.dir / "ns/r0/abc/good.kv");
      bool made = false;
      const auto plant = [&, &make = make] {
        if (!made) make(f.dir);
        made = true;
      };
      if (!meanwhile) plant();
      f.ops->SetHook([&](Call call) {
        if (call == Call::kRename) plant();
        return 0;
      });
      const FileResult result = f.Store();
      CHECK(result.status == FileStatus::kCorrupt && !f.removed);
      CHECK(std::filesystem::symlink_status(f.dir / kPath).type() !=
            std::filesystem::file_type::regular);
      CHECK(std::filesystem::exists(std::filesystem::symlink_status(f.dir / kPath)));
      CHECK(f.dir.CountFiles("ns/tmp") == 0 && f.dir.Exists("ns/r0/abc/good.kv"));
    }
  }
}

void WhatHasTheNameCannotBeReadFailsTheStore() {
  for (const Call call : {Call::kRead, Call::kOpen}) {
    Fixture f;
    CHECK(f.Store().ok());
    f.ops->SetHook(Fail(call, EIO));
    const FileResult result = f.Store();
    CHECK(result.status == FileStatus::kIoError && result.error == EIO);
    f.ops->SetHook(Fail(call, ESTALE));  // removed elsewhere: then it is stored
    CHECK(f.Store().error != EIO && f.dir.Exists(kPath));
  }
}

void PublicationFallsBackWhereCallsAreMissing() {
  Fixture other;
  other.blocks.FillRandom(2);
  CHECK(other.Store().ok());
  const std::string good = other.dir.Read(kPath);
  for (const bool links : {true, false}) {
    for (const char* theirs : {"", "garbage", "chunk"}) {
      const std::string content = std::string(theirs) == "chunk" ? good : theirs;
      Fixture f;
      bool planted = content.empty();
      f.ops->SetHook([&](Call call) {
        if (call == Call::kRename && !planted) {
          planted = true;  // somebody takes the name just before us
          f.dir.Write(kPath, content);
        }
        if (call == Call::kRename) return -EINVAL;
        return call == Call::kLink && !links ? -EPERM : 0;
      });
      CHECK(f.Store().ok() && f.Load() == FileStatus::kOk);
      CHECK(f.dir.CountFiles("ns/tmp") == 0);
      CHECK((f.dir.Read(kPath) == good) == (content == good));
    }
  }
}

// Two stores may find the same bad file. Whoever is second finds its name free, or good.
void ABadFileThatSomebodyElseRemovesFirstIsStoredAnew() {
  for (const bool replaced : {false, true}) {
    for (const Call last : {Call::kRead, Call::kUnlink}) {
      Fixture f;
      CHECK(f.Store().ok());
      const std::string good = f.dir.Read(kPath);
      f.dir.Write(kPath, "short" + std::string(2 * kPageBytes, 'x'));
      bool once = true;
      f.ops->SetHook([&](Call call) {
        if (call != last || !std::exchange(once, false)) return 0;
        std::filesystem::remove(f.dir / kPath);
        if (replaced && last == Call::kRead) f.dir.Write(kPath, good);
        return 0;
      });
      CHECK(f.Store().ok() && !f.removed && f.Load() == FileStatus::kOk);
    }
  }
}

void ANameThatIsTakenByNothingFailsTheStore() {
  Fixture f;
  f.ops->SetHook(Fail(Call::kRename, EEXIST));
  CHECK(f.Store().status == FileStatus::kNotFound);
  CHECK(f.dir.CountFiles("ns/tmp") == 0);
  bool once = true;
  f.ops->SetHook(
      [&](Call call) { return call == Call::kRename && std::exchange(once, false) ? -EEXIST : 0; });
  CHECK(f.Store().ok() && f.Load() == FileStatus::kOk);
}

}  // namespace
}  // namespace kvshelf

int main() {
  using namespace kvshelf;
  return testing::RunTests({
      {"a bad file that somebody else removes first is stored anew",
       ABadFileThatSomebodyElseRemovesFirstIsStoredAnew},
      {"a chunk that exists is left alone", AChunkThatExistsIsLeftAlone},
      {"a bad file that exists is stored anew", ABadFileThatExistsIsStoredAnew},
      {"an obstacle fails the store and stays", AnObstacleFailsTheStoreAndStays},
      {"what has the name cannot be read", WhatHasTheNameCannotBeReadFailsTheStore},
      {"publication falls back where calls are missing", PublicationFallsBackWhereCallsAreMissing},
      {"a name taken by nothing fails the store", ANameThatIsTakenByNothingFailsTheStore},
  });
}
