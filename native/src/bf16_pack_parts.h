// What the kinds of processors have in common when they pack and unpack: the layout of a packed
// piece, and groups of numbers by code and table. See kvshelf/bf16_pack.h.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "kvshelf/bf16_pack.h"

namespace kvshelf::packing {

inline constexpr std::uint32_t kMagic = 0x31504B56;  // "VKP1", little-endian
inline constexpr std::uint8_t kCodeBits = 4;
inline constexpr std::uint8_t kEscape = 15;
inline constexpr std::size_t kGroupCodeBytes = kPackGroupValues / 2;
inline constexpr std::size_t kGroupBytes = kGroupCodeBytes + kPackGroupValues;
inline constexpr std::size_t kBlocksPerGroup = kPackGroupValues / kPackBlockValues;

// The first 256 bytes of a packed piece.
struct Head {
  std::uint32_t magic;
  std::uint8_t code_bits;
  std::uint8_t table_scope;  // 0: the table is this head's
  std::uint8_t table_entries;
  std::uint8_t reserved;
  std::uint32_t values;
  std::uint32_t escapes;
  std::array<std::uint8_t, 240> exponents;  // by code; zero from table_entries on
};
static_assert(sizeof(Head) == kPackAlignment);

// Whole groups of numbers, at most kBatchGroups of them, to codes and bytes of sign and mantissa in
// `area`, group after group. `escaped`: of each group a bit for each block that has an escape.
inline constexpr std::size_t kBatchGroups = 16;
using PackGroups = void (*)(const PackTable& table, const std::uint16_t* values, std::size_t groups,
                            std::uint8_t* area, std::uint16_t* escaped);
// And back; an escape's exponent is 0.
using UnpackGroups = void (*)(const PackTable& table, const std::uint8_t* area, std::size_t groups,
                              std::uint16_t* values, std::uint16_t* escaped);

struct Kernels {
  PackGroups pack;
  UnpackGroups unpack;
};

void PackPortable(const PackTable& table, const std::uint16_t* values, std::size_t groups,
                  std::uint8_t* area, std::uint16_t* escaped);
void UnpackPortable(const PackTable& table, const std::uint8_t* area, std::size_t groups,
                    std::uint16_t* values, std::uint16_t* escaped);
#if defined(__x86_64__)
void PackAvx2(const PackTable& table, const std::uint16_t* values, std::size_t groups,
              std::uint8_t* area, std::uint16_t* escaped);
void UnpackAvx2(const PackTable& table, const std::uint8_t* area, std::size_t groups,
                std::uint16_t* values, std::uint16_t* escaped);
void PackAvx512(const PackTable& table, const std::uint16_t* values, std::size_t groups,
                std::uint8_t* area, std::uint16_t* escaped);
void UnpackAvx512(const PackTable& table, const std::uint8_t* area, std::size_t groups,
                  std::uint16_t* values, std::uint16_t* escaped);
#endif

}  // namespace kvshelf::packing
