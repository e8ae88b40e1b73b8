// How eviction's threads keep out of the way of others.
#include <sys/resource.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "sweep_fixture.h"
#include "sweep_walker.h"

namespace kvshelf::testing {
namespace {

using sweep::kBusyRest;
using sweep::kRest;
using sweep::RestFor;
using sweep::RunnableThreads;

std::chrono::nanoseconds OwnTime() {
  timespec used{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
  return std::chrono::nanoseconds(used.tv_sec * kSecond + used.tv_nsec);
}

// Removals that take 100 us of a processor each: a thread waits by itself only when it rests.
void ThreadsRestLongerWhereAllProcessorsAreInUse() {
  CHECK(RestFor(0, 2) == kRest && RestFor(1, 2) == kRest && RestFor(-3, 2) == kRest);
  CHECK(RestFor(2, 2) == kBusyRest && RestFor(9, 2) == kBusyRest);
  std::atomic<bool> over{false};
  std::vector<std::jthread> busy;
  for (int i = 0; i < 6; ++i) {
    busy.emplace_back([&] {
      while (!over) {
      }
    });
  }
  bool seen = false;
  for (int i = 0; i < 1000 && !seen; ++i) {
    seen = RunnableThreads() >= 6;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  over = true;
  CHECK(seen);
}

void ThreadsRestAfterAMomentsWork() {
  for (const bool band : {true, false}) {
    Shelf shelf(200);
    Swept swept(shelf, {.threads = 1});
    swept.sweep.Scan(true, kLong);
    long first = -1;
    long last = 0;
    swept.ops->SetHook([&](Call call) {
      if (call != Call::kUnlink) return 0;
      rusage use{};
      ::getrusage(RUSAGE_THREAD, &use);
      if (first < 0) first = use.ru_nvcsw;
      last = use.ru_nvcsw;
      const auto begin = OwnTime();
      while (OwnTime() - begin < std::chrono::microseconds(100)) {
      }
      return 0;
    });
    const std::int64_t never = shelf.Used(5000);
    swept.sweep.BeginRemoval(band ? CutAt(never, NowNs()) : CutAt(NowNs(), never), false, false);
    CHECK(swept.sweep.Remove({200, 0}, kLong).removed.files == 200);
    CHECK(last - first >= 20);  // of 40
  }
}

}  // namespace
}  // namespace kvshelf::testing

int main() {
  using namespace kvshelf::testing;
  return RunTests({
      {"threads rest after a moment's work", ThreadsRestAfterAMomentsWork},
      {"threads rest longer where all processors are in use",
       ThreadsRestLongerWhereAllProcessorsAreInUse},
  });
}
