// CRC-64/NVME, the checksum of docs/format.md. Pure functions, safe from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace kvshelf {

// The checksum of a concatenation: Crc64(Crc64(0, a), b) == Crc64(0, a + b). Starts from 0.
// Uses the fastest implementation that this processor has.
std::uint64_t Crc64(std::uint64_t crc, const void* data, std::size_t bytes);

// One implementation; for tests and measurements. All give the same results.
struct Crc64Variant {
  std::string_view name;
  std::uint64_t (*function)(std::uint64_t crc, const void* data, std::size_t bytes);
};

// Those that run on this processor, the slowest (portable tables) first.
std::span<const Crc64Variant> Crc64Variants();

}  // namespace kvshelf
