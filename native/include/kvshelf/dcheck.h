// Assertions: on in native tests, under sanitizers and in fuzzing, compiled out of what is
// installed (KVSHELF_DCHECKS in CMakeLists.txt).
#pragma once

#include <cstdio>
#include <cstdlib>

namespace kvshelf {

[[noreturn]] inline void DcheckFailed(const char* file, int line, const char* condition) {
  std::fprintf(stderr, "%s:%d: does not hold: %s\n", file, line, condition);
  std::abort();
}

}  // namespace kvshelf

#if defined(KVSHELF_DCHECKS)
#define KVSHELF_DCHECK(condition) \
  ((condition) ? static_cast<void>(0) : ::kvshelf::DcheckFailed(__FILE__, __LINE__, #condition))
#else
#define KVSHELF_DCHECK(condition) static_cast<void>(sizeof(!(condition)))  // not evaluated
#endif
