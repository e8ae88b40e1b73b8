// Lossless packing of bf16 numbers at 12 bits each, for KV cache payloads (docs/packing.md).
//
// A bf16 number is a sign, 8 bits of exponent and 7 of mantissa. Sign and mantissa of a KV cache
// are random; the exponents take few values. A piece keeps a table of its 15 most frequent
// exponents, one byte of sign and mantissa and a code of 4 bits a number, and the exponents that
// the table lacks in a list: the escapes.
//
// Functions are pure and may be called by any thread. Nothing that packed bytes say makes Unpack
// read or write outside its spans.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace kvshelf {

inline constexpr std::size_t kPackGroupValues = 2048;  // that share an entry of the index
inline constexpr std::size_t kPackBlockValues = 128;   // whose codes lie together
inline constexpr std::size_t kPackTableEntries = 15;
inline constexpr std::size_t kPackAlignment = 256;  // of every section

// What packing so many numbers takes at most, if no more than `escapes` of them are escapes.
std::size_t PackedBytesMax(std::size_t values, std::size_t escapes);

// Packs numbers into `out`; returns the bytes written, a multiple of kPackAlignment, or 0 if there
// is no room: then the numbers are to be kept as they are. `out` beyond the result is undefined.
std::size_t PackBf16(std::span<const std::uint16_t> values, std::span<std::uint8_t> out);

// Unpacks numbers; false if `packed` is not what PackBf16 makes of as many: then `values` is
// undefined.
bool UnpackBf16(std::span<const std::uint8_t> packed, std::span<std::uint16_t> values);

// The same functions for one kind of processor; the last one that this processor knows is used.
struct PackVariant {
  const char* name;
  std::size_t (*pack)(std::span<const std::uint16_t> values, std::span<std::uint8_t> out);
  bool (*unpack)(std::span<const std::uint8_t> packed, std::span<std::uint16_t> values);
};
std::span<const PackVariant> PackVariants();

}  // namespace kvshelf
