#include "engine_parts.h"

#include <algorithm>

namespace kvshelf {
namespace {

std::size_t BuffersMax(const EngineConfig& config) {
  return std::max<std::size_t>(1, config.write_buffer_bytes / config.piece_bytes);
}

// Buffers of write-behind stores that a GPU's engine pins at its start: 1 GiB of 4 MiB pieces.
// Pinning takes milliseconds a buffer: not while a store waits. What a generous setting allows
// beyond that is pinned when it is needed.
std::size_t BuffersAtStart(const EngineBasis& basis) {
  constexpr std::size_t kPinnedAtStart = 256;
  const bool pins =
      !basis.device->host_accessible() && basis.config.write_behind && !basis.groups.empty();
  return pins ? kPinnedAtStart : 0;
}

}  // namespace

EngineParts::EngineParts(EngineSetup setup)
    : basis(std::move(setup)),
      staging(basis.device, basis.config.piece_bytes, BuffersMax(basis.config),
              BuffersAtStart(basis), wake.copy),
      stores(basis.config.write_behind, staging, wake),
      lookups(basis.config, wake),
      jobs(basis.config.write_behind, stores, wake),
      deadlines(wake.supervisor),
      workers(basis, deadlines, wake) {}

void EngineParts::Add(const std::shared_ptr<Job>& job) {
  if (closed) throw EngineClosed();
  jobs.Add(job);
}

}  // namespace kvshelf
