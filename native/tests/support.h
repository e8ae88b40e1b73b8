// What the tests of files and engines share: a temp directory, block memory and system calls that
// can be made to hang or fail.
#pragma once

#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "kvshelf/engine.h"
#include "kvshelf/file_ops.h"

namespace kvshelf::testing {

class TempDir {
 public:
  TempDir() {
    std::string name = (std::filesystem::temp_directory_path() / "kvshelf-test-XXXXXX").string();
    path_ = ::mkdtemp(name.data());
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

  std::string Read(const std::string& name) const {
    std::ifstream file(*this / name, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  void Write(const std::string& name, const std::string& bytes) const {
    std::filesystem::create_directories(std::filesystem::path(*this / name).parent_path());
    std::ofstream(*this / name, std::ios::binary) << bytes;
  }
  bool Exists(const std::string& name) const {
    return std::filesystem::exists(std::filesystem::symlink_status(*this / name));
  }
  std::size_t CountFiles(const std::string& folder) const {
    if (!Exists(folder)) return 0;
    return static_cast<std::size_t>(
        std::distance(std::filesystem::directory_iterator(*this / folder), {}));
  }

 private:
  std::string path_;
};

// Block memory of `layers` layers; the last layer's pages are twice as long.
class Blocks {
 public:
  Blocks(std::size_t layers, std::size_t page_bytes, std::size_t blocks)
      : page_bytes_(page_bytes), blocks_(blocks) {
    for (std::size_t i = 0; i < layers; ++i) {
      const std::size_t bytes = i + 1 == layers ? 2 * page_bytes : page_bytes;
      layers_.emplace_back((bytes + kGap) * blocks);
    }
  }
  GroupMemory Describe() {
    std::vector<Pages> pages;
    for (auto& layer : layers_) {
      const std::size_t stride = layer.size() / blocks_;
      pages.push_back({layer.data(), stride, stride - kGap});
    }
    return GroupMemory(std::move(pages), static_cast<std::uint32_t>(blocks_), 42);
  }
  // The first layer as one run of bytes: base, distance of pages, and all of it as page_bytes.
  Pages FirstPages() { return PagesOf(0); }
  Pages PagesOf(std::size_t index) {
    auto& layer = layers_[index];
    const std::size_t stride = layer.size() / blocks_;
    return {layer.data(), stride, stride - kGap};
  }
  std::size_t block_bytes() const { return page_bytes_ * (layers_.size() + 1); }
  void FillRandom(unsigned seed) {
    for (auto& layer : layers_) {
      for (auto& byte : layer)
        byte = static_cast<std::byte>((seed = seed * 1664525 + 1013904223) >> 24);
    }
  }
  // bf16 numbers as a KV cache has them: few exponents, and one number in 128 with any.
  void FillNumbers(std::uint64_t seed) {
    for (auto& layer : layers_) {
      for (std::size_t i = 0; i + 1 < layer.size(); i += 2) {
        seed = seed * 6364136223846793005 + 1442695040888963407;
        const auto random = static_cast<std::uint32_t>(seed >> 32);
        const std::uint32_t usual = 126 - static_cast<std::uint32_t>(__builtin_clz(random | 1));
        const std::uint32_t exponent = (random & 127) == 0 ? random >> 8 & 255 : usual;
        const std::uint32_t value = (random >> 7 & 1) << 15 | exponent << 7 | (random >> 16 & 127);
        layer[i] = static_cast<std::byte>(value);
        layer[i + 1] = static_cast<std::byte>(value >> 8);
      }
    }
  }
  void Fill(int value) {
    for (auto& layer : layers_) std::memset(layer.data(), value, layer.size());
  }
  // A block's bytes in the order of the file.
  std::string Block(std::size_t id) const {
    std::string bytes;
    for (const auto& layer : layers_) {
      const std::size_t stride = layer.size() / blocks_;
      bytes.append(reinterpret_cast<const char*>(layer.data() + id * stride), stride - kGap);
    }
    return bytes;
  }
  std::string All() const {
    std::string bytes;
    for (const auto& layer : layers_) {
      bytes.append(reinterpret_cast<const char*>(layer.data()), layer.size());
    }
    return bytes;
  }

 private:
  static constexpr std::size_t kGap = 64;  // between pages: nothing may be written there
  std::size_t page_bytes_;
  std::size_t blocks_;
  std::vector<std::vector<std::byte>> layers_;
};

// A gate that threads wait at, as they would in the kernel.
class Trap {
 public:
  ~Trap() { Open(); }
  void Shut() {
    std::lock_guard lock(mutex_);
    shut_ = true;
  }
  void Open() {
    std::lock_guard lock(mutex_);
    shut_ = false;
    changed_.notify_all();
  }
  void Pass() {
    std::unique_lock lock(mutex_);
    ++waiting_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return !shut_; });
    --waiting_;
    ++passed_;
    changed_.notify_all();
  }
  // True once so many threads wait inside.
  bool AwaitCaught(int threads) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(10), [&] { return waiting_ >= threads; });
  }
  bool AwaitPassed(int threads) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(10), [&] { return passed_ >= threads; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool shut_ = false;
  int waiting_ = 0;
  int passed_ = 0;
};

enum class Call {
  kOpen,
  kAllocate,
  kRead,
  kWrite,
  kStat,
  kRename,
  kLink,
  kUnlink,
  kSync,
  kClose,
  kTouch
};

// The real system calls, but `hook` is asked first: a value < 0 is returned in place of the call.
// A read's hook runs after the call: that is a read whose data arrives late.
class FaultOps final : public FileOps {
 public:
  using Hook = std::function<int(Call)>;

  void SetHook(Hook hook) {
    std::lock_guard lock(mutex_);
    hook_ = std::move(hook);
  }
  int unlinks_by_callers() const { return unlinks_by_callers_; }
  // The most that a read or write transfers at once; 0: no limit.
  void SetTransferMax(std::size_t bytes) { transfer_max_ = bytes; }
  // Writes that are not at a file's end fail with this; with `gaps_too` false only those before it.
  void SetInOrder(int error, bool gaps_too = true) {
    in_order_ = error;
    gaps_too_ = gaps_too;
  }

  int OpenBeneath(int dir, const char* path, int flags, mode_t mode) override {
    const int fault = Ask(Call::kOpen);
    return fault < 0 ? fault : real_->OpenBeneath(dir, path, flags, mode);
  }
  ssize_t Pread(int fd, std::byte* data, std::size_t bytes, off_t offset) override {
    const std::size_t max = transfer_max_;
    const ssize_t result = real_->Pread(fd, data, max > 0 && bytes > max ? max : bytes, offset);
    const int fault = Ask(Call::kRead);
    return fault < 0 ? fault : result;
  }
  ssize_t Pwritev(int fd, std::span<const iovec> parts, off_t offset) override {
    const int fault = Ask(Call::kWrite);
    if (fault < 0) return fault;
    struct stat found{};
    if (in_order_ != 0 && real_->Fstat(fd, &found) == 0 &&
        (gaps_too_ ? found.st_size != offset : found.st_size > offset)) {
      return -in_order_;
    }
    iovec first = parts[0];
    const std::size_t max = transfer_max_;
    if (max == 0 || first.iov_len <= max) return real_->Pwritev(fd, parts, offset);
    first.iov_len = max;
    return real_->Pwritev(fd, {&first, 1}, offset);
  }
  int Allocate(int fd, off_t bytes) override {
    const int fault = Ask(Call::kAllocate);
    return fault < 0 ? fault : real_->Allocate(fd, bytes);
  }
  int Fstat(int fd, struct stat* result) override { return real_->Fstat(fd, result); }
  int StatAt(int dir, const char* path, struct stat* result) override {
    const int fault = Ask(Call::kStat);
    return fault < 0 ? fault : real_->StatAt(dir, path, result);
  }
  int MakeDirAt(int dir, const char* name, mode_t mode) override {
    return real_->MakeDirAt(dir, name, mode);
  }
  int UnlinkAt(int dir, const char* name) override {
    // Removing a file may hang, so a caller of the engine must never be the one to do it. Names
    // with a dot are the constructor's, when it tries O_DIRECT.
    char thread[16] = {};
    ::pthread_getname_np(::pthread_self(), thread, sizeof(thread));
    if (std::strncmp(thread, "kvs-", 4) != 0 && name[0] != '.') ++unlinks_by_callers_;
    const int fault = Ask(Call::kUnlink);
    return fault < 0 ? fault : real_->UnlinkAt(dir, name);
  }
  int RenameNoReplace(int from_dir, const char* from, int to_dir, const char* to) override {
    const int fault = Ask(Call::kRename);
    return fault < 0 ? fault : real_->RenameNoReplace(from_dir, from, to_dir, to);
  }
  int LinkAt(int from_dir, const char* from, int to_dir, const char* to) override {
    const int fault = Ask(Call::kLink);
    return fault < 0 ? fault : real_->LinkAt(from_dir, from, to_dir, to);
  }
  int Rename(int from_dir, const char* from, int to_dir, const char* to) override {
    return real_->Rename(from_dir, from, to_dir, to);
  }
  int SyncData(int fd) override {
    const int fault = Ask(Call::kSync);
    return fault < 0 ? fault : real_->SyncData(fd);
  }
  int Sync(int fd) override {
    const int fault = Ask(Call::kSync);
    return fault < 0 ? fault : real_->Sync(fd);
  }
  int Close(int fd) override {
    const int closed = real_->Close(fd);
    const int fault = Ask(Call::kClose);
    return fault < 0 ? fault : closed;
  }
  int TouchAt(int dir, const char* path, timespec time) override {
    const int fault = Ask(Call::kTouch);
    return fault < 0 ? fault : real_->TouchAt(dir, path, time);
  }

 private:
  int Ask(Call call) {
    Hook hook;
    {
      std::lock_guard lock(mutex_);
      hook = hook_;
    }
    return hook ? hook(call) : 0;
  }

  std::shared_ptr<FileOps> real_ = MakePosixFileOps();
  std::mutex mutex_;  // guards hook_
  Hook hook_;
  std::atomic<std::size_t> transfer_max_{0};
  std::atomic<int> in_order_{0};
  std::atomic<bool> gaps_too_{true};
  std::atomic<int> unlinks_by_callers_{0};
};

// Threads of this process whose names begin like this.
inline int CountThreads(const std::string& prefix) {
  int count = 0;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::string name;
    std::ifstream(task.path() / "comm") >> name;
    if (name.starts_with(prefix)) ++count;
  }
  return count;
}

inline FaultOps::Hook Fail(Call which, int error) {
  return [=](Call call) { return call == which ? -error : 0; };
}
inline FaultOps::Hook Catch(Call which, Trap& trap) {
  return [which, &trap](Call call) {
    if (call == which) trap.Pass();
    return 0;
  };
}

}  // namespace kvshelf::testing
