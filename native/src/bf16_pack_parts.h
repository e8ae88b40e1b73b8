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

// Exponents and codes, both ways.
struct Table {
  std::array<std::uint8_t, 16> exponents{};           // by code; that of kEscape is 0
  alignas(64) std::array<std::uint8_t, 256> codes{};  // by exponent
};

// A group's numbers, all kPackGroupValues of them, to codes and bytes of sign and mantissa.
using PackGroup = void (*)(const Table& table, const std::uint16_t* values, std::uint8_t* codes,
                           std::uint8_t* rest);
// And back; an escape's exponent is 0.
using UnpackGroup = void (*)(const Table& table, const std::uint8_t* codes,
                             const std::uint8_t* rest, std::uint16_t* values);

// `trusts_sample`: gives up at once if the sample for the table lets expect that there is no room.
std::size_t Pack(PackGroup group, bool trusts_sample, std::span<const std::uint16_t> values,
                 std::span<std::uint8_t> out);
bool Unpack(UnpackGroup group, std::span<const std::uint8_t> packed,
            std::span<std::uint16_t> values);
bool UnpackGroups(UnpackGroup group, std::span<const std::uint8_t> packed, std::size_t all_values,
                  std::size_t first, std::span<std::uint16_t> values, std::uint32_t& escapes);

void PackGroupPortable(const Table& table, const std::uint16_t* values, std::uint8_t* codes,
                       std::uint8_t* rest);
void UnpackGroupPortable(const Table& table, const std::uint8_t* codes, const std::uint8_t* rest,
                         std::uint16_t* values);
#if defined(__x86_64__)
void PackGroupAvx2(const Table& table, const std::uint16_t* values, std::uint8_t* codes,
                   std::uint8_t* rest);
void UnpackGroupAvx2(const Table& table, const std::uint8_t* codes, const std::uint8_t* rest,
                     std::uint16_t* values);
void PackGroupAvx512(const Table& table, const std::uint16_t* values, std::uint8_t* codes,
                     std::uint8_t* rest);
void UnpackGroupAvx512(const Table& table, const std::uint8_t* codes, const std::uint8_t* rest,
                       std::uint16_t* values);
#endif

}  // namespace kvshelf::packing
