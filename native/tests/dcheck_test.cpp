#include "kvshelf/dcheck.h"

#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <string>

#include "check.h"
#include "engine_lock.h"

namespace kvshelf {
namespace {

// What a process of its own says on stderr, and how it ends.
template <typename Body>
std::string SaidBy(Body&& body, int* status) {
  std::array<int, 2> ends{};
  CHECK(::pipe(ends.data()) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(ends[1], STDERR_FILENO);
    body();
    ::_exit(0);
  }
  ::close(ends[1]);
  std::string said;
  std::array<char, 4096> part{};
  for (ssize_t got = 0; (got = ::read(ends[0], part.data(), part.size())) > 0;) {
    said.append(part.data(), static_cast<std::size_t>(got));
  }
  ::close(ends[0]);
  CHECK(::waitpid(child, status, 0) == child);
  return said;
}

void WhatDoesNotHoldEndsTheProcess() {
  int status = 0;
  const std::string said = SaidBy([] { KVSHELF_DCHECK(1 + 1 == 3); }, &status);
  CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
  CHECK(said.find("dcheck_test.cpp:") != std::string::npos);
  CHECK(said.find("does not hold: 1 + 1 == 3") != std::string::npos);
}

void WhatHoldsIsSilent() {
  int status = 0;
  CHECK(SaidBy([] { KVSHELF_DCHECK(1 + 1 == 2); }, &status).empty());
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

void AThreadKnowsWhetherItHoldsTheMutex() {
  std::mutex mutex;
  CHECK(!EngineLock::IsHeld());
  {
    EngineLock lock(mutex);
    CHECK(EngineLock::IsHeld());
    lock.unlock();
    CHECK(!EngineLock::IsHeld());
    lock.lock();
    CHECK(EngineLock::IsHeld());
  }
  CHECK(!EngineLock::IsHeld());
}

constexpr testing::NamedTest kTests[] = {
    {"WhatDoesNotHoldEndsTheProcess", WhatDoesNotHoldEndsTheProcess},
    {"WhatHoldsIsSilent", WhatHoldsIsSilent},
    {"AThreadKnowsWhetherItHoldsTheMutex", AThreadKnowsWhetherItHoldsTheMutex},
};

}  // namespace
}  // namespace kvshelf

int main() { return kvshelf::testing::RunTests(kvshelf::kTests); }
