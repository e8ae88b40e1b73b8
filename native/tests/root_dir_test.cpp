// A root whose file system is mounted anew, as its path sees it: another directory under its name.
#include "kvshelf/root_dir.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "support.h"

namespace kvshelf::testing {
namespace {

namespace fs = std::filesystem;

constexpr auto kPatience = std::chrono::seconds(10);

// A shelf's root, in a folder that stays.
struct Site {
  TempDir dir;
  std::string path = dir / "root";
  RootDir root;

  Site() : root(MakePosixFileOps(), Made(path, true), OwnTempPrefix(), 0770) {}

  static const std::string& Made(const std::string& path, bool marker) {
    fs::create_directory(path);
    if (marker) std::ofstream(path + "/kvshelf.json") << "{}";
    return path;
  }
  bool Has(const std::string& name) const {
    struct stat found{};
    return root.StatBeneath(name, &found) == 0;
  }
  bool WillHave(const std::string& name) const {
    const auto end = std::chrono::steady_clock::now() + kPatience;
    while (!Has(name)) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return true;
  }
};

void AnotherDirectoryWithAMarkerIsFollowed() {
  Site site;
  site.dir.Write("root/old", "x");
  CHECK(site.Has("old"));
  const int number = site.root.fd();
  fs::rename(site.path, site.dir / "away");
  CHECK(site.Has("old"));
  Site::Made(site.path, true);
  site.dir.Write("root/new", "x");
  CHECK(site.WillHave("new"));
  CHECK(!site.Has("old"));
  CHECK(site.root.fd() == number);
}

void ADirectoryWithoutAMarkerIsNot() {
  Site site;
  site.dir.Write("root/old", "x");
  fs::rename(site.path, site.dir / "away");
  Site::Made(site.path, false);
  site.dir.Write("root/new", "x");
  fs::create_symlink("new", site.path + "/kvshelf.json");
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(2500);
  while (std::chrono::steady_clock::now() < end) {
    CHECK(site.Has("old"));
    CHECK(!site.Has("new"));
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  // The first one is back.
  fs::remove_all(site.path);
  fs::rename(site.dir / "away", site.path);
  site.dir.Write("root/later", "x");
  CHECK(site.WillHave("later"));
}

void ManyThreadsSeeOneOrTheOther() {
  Site site;
  site.dir.Write("root/both", "x");
  std::atomic<bool> stop{false};
  std::atomic<int> missed{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      while (!stop) missed += site.Has("both") ? 0 : 1;
    });
  }
  for (int round = 0; round < 3; ++round) {
    const std::string next = site.dir / ("next" + std::to_string(round));
    Site::Made(next, true);
    std::ofstream(next + "/both") << "x";
    std::ofstream(next + "/round" + std::to_string(round)) << "x";
    fs::rename(site.path, site.dir / ("away" + std::to_string(round)));
    fs::rename(next, site.path);
    CHECK(site.WillHave("round" + std::to_string(round)));
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  CHECK(missed == 0);
}

mode_t ModeOf(const std::string& path) {
  struct stat found{};
  return ::stat(path.c_str(), &found) == 0 ? found.st_mode & 07777 : 0;
}

// What a folder made beneath a root of this mode gets, with all permissions asked for.
mode_t ModeOfFolder(mode_t root_mode, mode_t umask) {
  TempDir dir;
  const std::string path = Site::Made(dir / "root", true);
  ::chmod(path.c_str(), root_mode);
  const mode_t before = ::umask(umask);
  const RootDir root(MakePosixFileOps(), path, OwnTempPrefix(), 02770);
  const UniqueFd made(root.MakeFolder("space/r0"));
  const UniqueFd file(root.ops().OpenBeneath(root.fd(), "file", O_WRONLY | O_CREAT, 0640));
  root.GiveToUsers(file.get(), 0640);
  ::umask(before);
  CHECK(made && file);
  CHECK(ModeOf(path + "/space") == ModeOf(path + "/space/r0"));
  const mode_t group_reads = (root_mode & S_IWGRP) != 0 || (umask & S_IRGRP) == 0 ? 0640 : 0600;
  CHECK(ModeOf(path + "/file") == group_reads);
  return ModeOf(path + "/space/r0");
}

void WhereTheGroupMayWriteTheUmaskDoesNotMatter() {
  CHECK(ModeOfFolder(02770, 022) == 02770);
  CHECK(ModeOfFolder(02770, 077) == 02770);
  CHECK(ModeOfFolder(0770, 022) == 0770);
  CHECK(ModeOfFolder(0755, 022) == 0750);
  CHECK(ModeOfFolder(0755, 077) == 0700);
  CHECK(ModeOfFolder(0777, 077) == 0770);  // others get what the setting allows: nothing
}

void WhatTheSuperuserMakesIsTheRootsOwners() {
  if (::geteuid() != 0) return;
  TempDir dir;
  const std::string path = Site::Made(dir / "root", true);
  CHECK(::chown(path.c_str(), 40001, 50000) == 0);
  const RootDir root(MakePosixFileOps(), path, OwnTempPrefix(), 02770);
  const UniqueFd made(root.MakeFolder("space/r0"));
  struct stat found{};
  for (const char* name : {"/space", "/space/r0"}) {
    CHECK(::stat((path + name).c_str(), &found) == 0);
    CHECK(found.st_uid == 40001 && found.st_gid == 50000);
  }
}

}  // namespace
}  // namespace kvshelf::testing

int main() {
  using namespace kvshelf::testing;
  return RunTests({
      {"another directory with a marker is followed", AnotherDirectoryWithAMarkerIsFollowed},
      {"a directory without a marker is not", ADirectoryWithoutAMarkerIsNot},
      {"many threads see one or the other", ManyThreadsSeeOneOrTheOther},
      {"where the group may write the umask does not matter",
       WhereTheGroupMayWriteTheUmaskDoesNotMatter},
      {"what the superuser makes is the root's owner's", WhatTheSuperuserMakesIsTheRootsOwners},
  });
}
