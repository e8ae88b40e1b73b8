// What an engine is made of: fixed by its constructor, and read by all of its threads.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "job.h"
#include "kvshelf/use_time.h"

namespace kvshelf {

struct EngineBasis {
  // Throws std::invalid_argument for settings, std::system_error for the root.
  explicit EngineBasis(EngineSetup setup);

  ChunkIdentity IdentityOf(const Transfer& file) const;

  EngineConfig config;
  ChunkIoOptions io_options;
  std::vector<GroupMemory> groups;
  NamespaceDigest namespace_digest;
  std::uint32_t rank;
  std::optional<AuthKey> auth_key;
  std::shared_ptr<Device> device;
  RootDir root;     // thread-safe
  FileClock clock;  // likewise; a caller may set it
};

}  // namespace kvshelf
