// Limits and habits of an engine; each field is documented in src/kvshelf/engine/config.py. The
// values here are Python's defaults on a host of 12 cores or more (tests/engine/test_config.py),
// for callers in C++.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>

#include "kvshelf/status.h"

namespace kvshelf {

using Clock = std::chrono::steady_clock;
using TimePoint = Clock::time_point;
using Seconds = std::chrono::duration<double>;

// Timeouts beyond this are treated as this: adding more to a time point could overflow it.
inline constexpr double kTimeoutSecondsMax = 1e8;

// A double from a caller as a clock duration; negative and NaN become zero.
inline Clock::duration ToDuration(double seconds) {
  if (!(seconds > 0)) return Clock::duration::zero();
  return std::chrono::duration_cast<Clock::duration>(
      Seconds(seconds < kTimeoutSecondsMax ? seconds : kTimeoutSecondsMax));
}

struct EngineConfig {
  int io_threads = 12;
  int load_only_threads = 3;  // cut to io_threads - 1: some thread must take stores
  int lookup_threads = 32;
  std::uint64_t piece_bytes = 4ull << 20;
  std::uint64_t step_bytes = 256ull << 10;
  // Of each of the two buffers that a thread reads ahead into, for a device that copies on its own.
  // On an H100, 1 MiB made loads a third slower (a copy costs the driver some 40 microseconds under
  // a lock), and more buffers than two made none faster.
  std::uint64_t ring_bytes = 4ull << 20;
  std::uint64_t write_buffer_bytes = 250'000'000;
  double store_queue_seconds = 30.0;
  double store_timeout_seconds = 120.0;
  double load_timeout_seconds = 30.0;
  double load_stall_seconds = 5.0;
  double lookup_timeout_seconds = 5.0;
  double touch_interval_seconds = 600.0;
  std::uint64_t touch_queue_files = 65536;
  std::uint64_t queue_files = 65536;
  bool write_behind = true;
  bool verify = true;
  bool remove_bad = true;
  bool compress = false;
  Direct direct = Direct::kOff;
  Durability durability = Durability::kNone;
  mode_t file_mode = 0640;
  mode_t dir_mode = 02770;
  int replacement_threads = 16;
};

// Throws std::invalid_argument naming the field and what is allowed.
void CheckConfig(const EngineConfig& config);

}  // namespace kvshelf
