// The smallest test runner that does: CHECK reports and counts, a test file's main returns it.
#pragma once

#include <cstdio>

namespace kvshelf::testing {

inline int& FailureCount() {
  static int count = 0;
  return count;
}

inline void Expect(bool ok, const char* text, const char* file, int line) {
  if (ok) return;
  ++FailureCount();
  std::fprintf(stderr, "%s:%d: failed: %s\n", file, line, text);
}

using TestFunction = void (*)();
struct NamedTest {
  const char* name;
  TestFunction run;
};

template <std::size_t kCount>
int RunTests(const NamedTest (&tests)[kCount]) {
  for (const NamedTest& test : tests) {
    const int before = FailureCount();
    test.run();
    std::printf("%s %s\n", FailureCount() == before ? "ok    " : "FAILED", test.name);
    std::fflush(stdout);
  }
  return FailureCount() == 0 ? 0 : 1;
}

}  // namespace kvshelf::testing

#define CHECK(condition) \
  ::kvshelf::testing::Expect(static_cast<bool>(condition), #condition, __FILE__, __LINE__)
