// What a file system does when an engine uses it: found out by the engine's own code.
#pragma once

#include <ctime>
#include <string>

#include "kvshelf/chunk_io.h"

namespace kvshelf {

// Errors are errnos; 0 is none. What comes after a step that failed was not tried.
struct ProbeReport {
  FileResult stored;        // a chunk, with durability none
  FileResult stored_again;  // by a writer that began before the chunk was there
  bool replaced = false;    // by that writer
  FileResult loaded;        // with the bytes that were stored, else kCorrupt
  FileResult removed;
  Naming naming = Naming::kUnknown;
  int rename_error = 0;
  int link_error = 0;
  int allocate_error = 0;
  WriteOrder order = WriteOrder::kUnknown;
  int direct_error = 0;
  int touch_error = 0;
  timespec touched{};       // what the file system made of `kProbeTime`
  FileResult synced_data;   // a chunk, with durability data
  FileResult synced_full;   // and full
  double sync_seconds = 0;  // of the first
};

inline constexpr timespec kProbeTime{1'600'000'000, 123'456'789};
inline constexpr std::uint64_t kProbeBytes = 1 << 20;

// Stores, loads, touches and removes chunks of 1 MiB in a folder of the directory, which stays,
// empty. Throws std::system_error if the directory cannot be opened. Waits for storage.
ProbeReport Probe(const std::string& directory, mode_t file_mode, mode_t dir_mode);

}  // namespace kvshelf
