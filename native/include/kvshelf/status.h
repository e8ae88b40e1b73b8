// What happens to a chunk file or a job, in numbers that Python shares.
// The values are those of src/kvshelf/engine/base.py: do not change existing ones.
#pragma once

#include <cstdint>

namespace kvshelf {

enum class FileStatus : std::uint8_t {
  kOk = 0,
  kNotFound = 1,
  kCorrupt = 2,
  kForeign = 3,
  kIoError = 4,
  kTimedOut = 5,
  kCancelled = 6,
  kDropped = 7,
};

enum class JobKind : std::uint8_t { kStore = 0, kLoad = 1, kLookup = 2, kProbe = 3 };
enum class Phase : std::uint8_t { kReleased = 0, kFinished = 1 };
enum class Direct : std::uint8_t { kOff = 0, kAuto = 1, kOn = 2 };
enum class Durability : std::uint8_t { kNone = 0, kData = 1, kFull = 2 };

// The outcome of work on one file. `error` is an errno, 0 unless status is kIoError.
struct [[nodiscard]] FileResult {
  FileStatus status = FileStatus::kOk;
  int error = 0;

  bool ok() const { return status == FileStatus::kOk; }
  static FileResult IoError(int error) { return {FileStatus::kIoError, error}; }
};

}  // namespace kvshelf
