// Names and hostile folders: the input builds a tree of folders, files, links, pipes and sockets
// under a root, then paths of the input are opened, stat-ed, touched, made, stored to and loaded.
// Nothing outside the root may be seen or changed, and the two ways to walk a path must agree.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <climits>
#include <filesystem>
#include <fstream>
#include <memory>
#include <set>

#include "fuzz.h"
#include "kvshelf/chunk_io.h"
#include "kvshelf/layout.h"

namespace kvshelf::fuzz {
namespace {

namespace fs = std::filesystem;

// base/root is the shelf; what lies beside it is nobody's business.
struct Site {
  std::string base =
      fs::exists("/dev/shm") ? "/dev/shm/kvshelf-fuzz-XXXXXX" : "/tmp/kvshelf-fuzz-XXXXXX";
  std::string root;
  // What lies outside, and how it must stay. It is not listed, which would renew access times.
  std::vector<std::pair<std::string, struct stat>> outside;

  Site() {
    DEMAND(::mkdtemp(base.data()) != nullptr);
    root = base + "/root";
    fs::create_directories(base + "/outside/r0/abc");
    std::ofstream(base + "/outside/r0/abc/abc-g0.kv") << std::string(8192, 'x');
    for (const char* name :
         {"/outside/r0/abc/abc-g0.kv", "/outside/r0/abc", "/outside/r0", "/outside"}) {
      const std::string path = base + name;
      const timespec times[2] = {{1000, 0}, {2000, 0}};
      ::utimensat(AT_FDCWD, path.c_str(), times, 0);
      outside.push_back({path, {}});
    }
    for (auto& [path, was] : outside) ::lstat(path.c_str(), &was);
  }
  ~Site() { fs::remove_all(base); }
  const std::string& Canary() const { return outside.front().first; }
  void Clear() const {
    fs::remove_all(root);
    fs::create_directory(root);
  }
  static bool Same(const struct stat& a, const struct stat& b) {
    return a.st_ino == b.st_ino && a.st_size == b.st_size && a.st_mode == b.st_mode &&
           a.st_nlink == b.st_nlink && a.st_atim.tv_sec == b.st_atim.tv_sec &&
           a.st_mtim.tv_sec == b.st_mtim.tv_sec && a.st_ctim.tv_sec == b.st_ctim.tv_sec &&
           a.st_ctim.tv_nsec == b.st_ctim.tv_nsec;
  }
  void DemandUntouched() const {
    struct stat now{};
    for (const auto& [path, was] : outside) {
      DEMAND(::lstat(path.c_str(), &now) == 0 && Same(now, was));
    }
    DEMAND(std::distance(fs::directory_iterator(base), {}) == 2);
  }
};

// Few names, so that paths meet what was built; sometimes raw bytes of the input.
std::string NameOf(Input& input) {
  static const std::string kNames[] = {"ns", "r0", "abc", "abc-g0.kv", "tmp", "..", ".", ""};
  const auto pick = input.Take<std::uint8_t>();
  if (pick < 200) return kNames[pick % std::size(kNames)];
  if (pick < 210) return std::string(NAME_MAX - 200 + pick, 'n');
  return input.Text(pick % 32);
}

std::string PathOf(Input& input) {
  std::string path;
  for (int parts = input.Take<std::uint8_t>() % 6; parts >= 0; --parts) {
    path += NameOf(input);
    if (parts > 0) path += '/';
  }
  return path;
}

void Build(const Site& site, Input& input) {
  for (int i = input.Take<std::uint8_t>() % 12; i > 0; --i) {
    const auto kind = input.Take<std::uint8_t>();
    const std::string path = PathOf(input);
    if (!WhatIsWrongWithPath(path).empty()) continue;
    const std::string full = site.root + "/" + path;
    std::error_code ignored;
    // Through the root's links a builder would leave it: a folder is only made where all is real.
    const fs::path parent = fs::weakly_canonical(fs::path(full).parent_path(), ignored);
    if (ignored || !parent.string().starts_with(site.root)) continue;
    if (kind % 8 != 7) fs::create_directories(parent, ignored);
    const std::string name = full.substr(full.rfind('/'));
    const std::string place = parent.string() + name;
    if (fs::exists(fs::symlink_status(place, ignored))) continue;
    switch (kind % 8) {
      case 0:
        ::mkdir(place.c_str(), 0700);
        break;
      case 1:
        std::ofstream(place) << std::string(kind * 64, 'f');
        break;
      case 2:
        ::symlink((site.base + "/outside").c_str(), place.c_str());
        break;
      case 3:
        ::symlink(site.Canary().c_str(), place.c_str());
        break;
      case 4:
        ::symlink("../../outside/r0", place.c_str());
        break;
      case 5:
        ::symlink(name.c_str() + 1, place.c_str());
        break;  // to itself
      case 6:
        ::mkfifo(place.c_str(), 0600);
        break;
      default:
        ::mknod(place.c_str(), S_IFSOCK | 0600, 0);
    }
  }
}

// Open files of the root only; both walks find the same thing or nothing.
void CheckOpen(const Site& site, const RootDir& fast, const RootDir& slow,
               const std::string& path) {
  for (const int flags : {O_RDONLY | O_NONBLOCK, O_PATH | O_DIRECTORY}) {
    const UniqueFd one(fast.ops().OpenBeneath(fast.fd(), path.c_str(), flags, 0));
    const UniqueFd two(slow.ops().OpenBeneath(slow.fd(), path.c_str(), flags, 0));
    DEMAND(static_cast<bool>(one) == static_cast<bool>(two));
    if (!one) continue;
    struct stat a{}, b{};
    DEMAND(::fstat(one.get(), &a) == 0 && ::fstat(two.get(), &b) == 0 && a.st_ino == b.st_ino);
    const fs::path where = fs::read_symlink("/proc/self/fd/" + std::to_string(one.get()));
    DEMAND(where.string().starts_with(site.root + "/"));
  }
  struct stat a{}, b{};
  const int one = fast.StatBeneath(path, &a), two = slow.StatBeneath(path, &b);
  DEMAND((one == 0) == (two == 0) && (one != 0 || a.st_ino == b.st_ino));
}

struct Transfer {
  std::vector<std::byte> bytes = std::vector<std::byte>(8 * 1024, std::byte{7});
  GroupMemory memory{{{bytes.data(), 1024, 1024}}, 8, 1};
  std::vector<std::int32_t> ids = {0, 1, 2};
  std::shared_ptr<ThreadContext> context = MakeThreadContext(*MakeHostDevice(), 4096, 4096);
  ChunkIoOptions options;
  ChunkRequest request;
  ChunkIdentity identity;

  explicit Transfer(const std::string& path) {
    options.piece_bytes = 4096;
    options.durability = Durability::kFull;
    request = {path, "a key of a chunk", &memory, 0, ids};
    identity = {{}, request.key, 0, 1, 1024};
  }
  FileResult Store(RootDir& root) {
    FileResult result;
    CopyGate gate;
    ChunkWriter writer(root, options, identity, request);
    if (writer.Begin(&result, *context) != ChunkWriter::Start::kReady) return result;
    memory.Map(ids, 0, request.payload_bytes(), context->segments);
    result = writer.WriteSegments(context->segments, gate, *context);
    return result.ok() ? writer.Publish(gate, *context) : result;
  }
  FileStatus Load(RootDir& root, bool* removed) {
    CopyGate gate;
    return ChunkReader(root, options, identity, request, *context).Load(gate, removed).status;
  }
};

void Use(const Site& site, RootDir& root, const std::string& path) {
  struct stat found{};
  const bool there = root.StatBeneath(path, &found) == 0;
  root.TouchBeneath(path, {0, UTIME_NOW});
  bool flag = false;
  const UniqueFd folder(root.MakeFolder(SplitPath(path).first));
  // A store makes its temp folder, so that name is no chunk's; layout.py never makes it one.
  const std::size_t slash = path.find('/');
  if (slash == std::string::npos || path.substr(slash) == "/tmp") return;
  Transfer transfer(path);
  const bool stored = transfer.Store(root).ok();
  const FileStatus loaded = transfer.Load(root, &flag);
  if (stored && !there) DEMAND(loaded == FileStatus::kOk && !flag);
  if (loaded == FileStatus::kOk)
    DEMAND(fs::is_regular_file(fs::symlink_status(site.root + "/" + path)));
  if (flag) DEMAND(!fs::exists(fs::symlink_status(site.root + "/" + path)));
}

void CheckName(const std::string& path) {
  const bool fine = WhatIsWrongWithPath(path).empty();
  const auto [folder, name] = SplitPath(path);
  DEMAND((folder.empty() && path.find('/') == std::string::npos ? name : folder + "/" + name) ==
         path);
  DEMAND(name.find('/') == std::string::npos);
  if (!fine) return;
  DEMAND(!path.empty() && path.size() < PATH_MAX && path.find('\0') == std::string::npos);
  const std::string around = "/" + path + "/";
  for (const char* bad : {"//", "/./", "/../"}) DEMAND(around.find(bad) == std::string::npos);
  DEMAND(std::strlen(path.c_str()) == path.size());
}

// The path of any key in a good folder is good; of the longest, it may be longer than names can be.
void CheckKey(Input& input) {
  std::string key = input.Text(kKeyBytesMax);
  if (key.size() < kKeyBytesMin) key.resize(kKeyBytesMin);
  const std::string path = ChunkPath("ns/r0", key);
  DEMAND(WhatIsWrongWithPath(path).empty() || key.size() > 124);
  DEMAND(path.starts_with("ns/r0/") && path.ends_with(".kv"));
  CheckName(path);
}

}  // namespace

std::vector<std::string> Seeds(const std::vector<std::string>&) {
  // Kinds and paths as Build reads them: a link at each place of a chunk's path, then its path.
  std::vector<std::string> seeds;
  for (char depth = 0; depth < 4; ++depth) {
    for (char kind = 0; kind < 8; ++kind) {
      std::string seed = {2, kind, depth};
      for (char part = 0; part <= depth; ++part) seed += part;
      seed += std::string{0, 1, 0, 4, 1, 3, 0, 1, 2, 3};
      seeds.push_back(seed + std::string{3, 0, 1, 2, 3, 1, 0, 4});
    }
  }
  return seeds;
}

}  // namespace kvshelf::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes) {
  using namespace kvshelf;
  using namespace kvshelf::fuzz;
  static const Site site;
  Input input(data, bytes);
  site.Clear();
  Build(site, input);
  RootDir fast(MakePosixFileOps(true), site.root, "host-boot-1-2", 0750);
  RootDir slow(MakePosixFileOps(false), site.root, "host-boot-1-3", 0750);
  for (int i = 0; i < 6 && !input.empty(); ++i) {
    const std::string path = PathOf(input);
    CheckName(path);
    if (!WhatIsWrongWithPath(path).empty()) continue;  // the engine refuses these
    CheckOpen(site, fast, slow, path);
    Use(site, i % 2 == 0 ? fast : slow, path);
    site.DemandUntouched();
  }
  CheckKey(input);
  return 0;
}
