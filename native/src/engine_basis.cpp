#include "engine_basis.h"

#include <algorithm>
#include <stdexcept>
#include <system_error>

namespace kvshelf {
namespace {

// O_DIRECT has no read-ahead, so its steps must be long enough to keep a device busy.
constexpr std::uint64_t kDirectStepBytes = 1 << 20;

ChunkIoOptions IoOptions(const EngineConfig& config) {
  ChunkIoOptions options;
  options.step_bytes = config.step_bytes;
  options.piece_bytes = static_cast<std::uint32_t>(config.piece_bytes);
  options.verify = config.verify;
  options.remove_bad = config.remove_bad;
  options.compress = config.compress;
  options.durability = config.durability;
  options.file_mode = config.file_mode;
  return options;
}

const EngineConfig& Checked(const EngineConfig& config) {
  CheckConfig(config);
  return config;
}

}  // namespace

void CheckConfig(const EngineConfig& config) {
  auto demand = [](bool holds, const char* text) {
    if (!holds) throw std::invalid_argument(text);
  };
  auto whole_pages = [](std::uint64_t bytes, std::uint64_t max) {
    return bytes >= kPageBytes && bytes % kPageBytes == 0 && bytes <= max;
  };
  demand(config.io_threads >= 1 && config.io_threads <= 1024, "io_threads: 1 to 1024");
  demand(config.load_only_threads >= 0, "load_only_threads: at least 0");
  demand(config.lookup_threads >= 1 && config.lookup_threads <= 1024, "lookup_threads: 1 to 1024");
  demand(whole_pages(config.piece_bytes, 1u << 30),
         "piece_bytes: a multiple of 4096, at most 1 GiB");
  demand(whole_pages(config.ring_bytes, 1u << 30), "ring_bytes: a multiple of 4096, at most 1 GiB");
  demand(whole_pages(config.step_bytes, 1u << 30), "step_bytes: a multiple of 4096, at most 1 GiB");
  demand(config.replacement_threads >= 0 && config.replacement_threads <= 1024,
         "replacement_threads: 0 to 1024");
}

EngineBasis::EngineBasis(EngineSetup setup)
    : config(Checked(setup.config)),
      io_options(IoOptions(setup.config)),
      groups(std::move(setup.groups)),
      namespace_digest(setup.namespace_digest),
      rank(setup.rank),
      auth_key(setup.auth_key.empty() ? std::nullopt : std::make_optional<AuthKey>(setup.auth_key)),
      device(setup.device != nullptr ? std::move(setup.device) : MakeHostDevice()),
      root(setup.ops != nullptr ? std::move(setup.ops) : MakePosixFileOps(), setup.root,
           setup.temp_prefix.empty() ? OwnTempPrefix() : std::move(setup.temp_prefix),
           setup.config.dir_mode) {
  if (config.direct != Direct::kOff) {
    const int error = root.ProbeDirect();
    if (error < 0 && config.direct == Direct::kOn) {
      throw std::system_error(-error, std::generic_category(),
                              setup.root + ": O_DIRECT does not work here");
    }
    io_options.direct = error >= 0;
  }
  if (io_options.direct) {
    io_options.step_bytes = std::max(io_options.step_bytes, kDirectStepBytes);
  }
}

ChunkIdentity EngineBasis::IdentityOf(const Transfer& file) const {
  const GroupMemory& memory = *file.request.memory;
  return {namespace_digest,  file.request.key,     rank,
          memory.geometry(), memory.block_bytes(), auth_key ? &*auth_key : nullptr};
}

}  // namespace kvshelf
