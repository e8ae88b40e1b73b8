// A shelf of small files, and a sweep over it.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>

#include <cstdint>
#include <cstdio>
#include <ctime>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "kvshelf/shelf_sweep.h"
#include "support.h"

namespace kvshelf::testing {

inline constexpr std::int64_t kSecond = 1'000'000'000;
inline constexpr double kLong = 60;
inline constexpr std::int64_t kBytes = 100;
inline const std::string kSpace = "tiny-0123456789ab";

inline std::int64_t NowNs() {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return now.tv_sec * kSecond + now.tv_nsec;
}

inline void SetTimes(const std::string& path, std::int64_t used, std::int64_t stored) {
  const timespec times[2] = {{used / kSecond, used % kSecond},
                             {stored / kSecond, stored % kSecond}};
  ::utimensat(AT_FDCWD, path.c_str(), times, 0);
}

// A shelf of `count` chunks in many folders; chunk i was last used i + 10 seconds ago.
class Shelf {
 public:
  explicit Shelf(int count) : now_(NowNs()) {
    dir_.Write(kSpace + "/namespace.json", "{}");
    for (int i = 0; i < count; ++i) Add(i);
  }
  void Add(int i) {
    dir_.Write(Name(i), std::string(kBytes, 'x'));
    SetTimes(dir_ / Name(i), Used(i), Used(i) - (i % 2 == 0 ? 0 : 5 * kSecond));
  }
  static std::string Name(int i) {
    char name[64];
    std::snprintf(name, sizeof(name), "%03x%013x-g0.kv", i * 37 % 4096, i);
    return kSpace + "/r0/" + std::string(name, 3) + "/" + name;
  }
  std::int64_t Used(int i) const { return now_ - (i + 10) * kSecond; }
  void Use(int i) const { SetTimes(dir_ / Name(i), now_, now_ - 100 * kSecond); }
  bool Has(int i) const { return dir_.Exists(Name(i)); }
  int Count(int from, int to) const {
    int count = 0;
    for (int i = from; i < to; ++i) count += Has(i) ? 1 : 0;
    return count;
  }
  const TempDir& dir() const { return dir_; }

 private:
  TempDir dir_;
  std::int64_t now_;
};

inline std::vector<Cuts> CutAt(std::int64_t sure, std::int64_t maybe) {
  return {{Cut{sure, maybe}, Cut{sure, maybe}}};
}

struct Swept {
  Swept(const Shelf& shelf, SweepConfig config = {})
      : ops(std::make_shared<FaultOps>()), sweep(ops, shelf.dir().path(), config) {
    sweep.SetNamespaces({kSpace});
  }
  std::shared_ptr<FaultOps> ops;
  ShelfSweep sweep;
};

}  // namespace kvshelf::testing
