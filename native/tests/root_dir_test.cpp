// A root whose file system is mounted anew, as its path sees it: another directory under its name.
#include "kvshelf/root_dir.h"

#include <sys/stat.h>

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

}  // namespace
}  // namespace kvshelf::testing

int main() {
  using namespace kvshelf::testing;
  return RunTests({
      {"another directory with a marker is followed", AnotherDirectoryWithAMarkerIsFollowed},
      {"a directory without a marker is not", ADirectoryWithoutAMarkerIsNot},
      {"many threads see one or the other", ManyThreadsSeeOneOrTheOther},
  });
}
