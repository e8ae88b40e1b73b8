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
// is no room, or a sample lets expect none: then the numbers are to be kept as they are. `out`
// beyond the result is undefined.
std::size_t PackBf16(std::span<const std::uint16_t> values, std::span<std::uint8_t> out);

// Unpacks numbers; false if `packed` is not what PackBf16 makes of as many: then `values` is
// undefined.
bool UnpackBf16(std::span<const std::uint8_t> packed, std::span<std::uint16_t> values);

// Unpacks a piece in steps, each of which is used while it is in cache. One thread; `packed` must
// stay as it is.
class PieceUnpacker {
 public:
  PieceUnpacker(std::span<const std::uint8_t> packed, std::size_t values);
  // The next numbers: a multiple of kPackGroupValues, but for the last. False as UnpackBf16.
  bool Next(std::span<std::uint16_t> values);
  // Whether all numbers were taken and nothing is left over.
  bool AtEnd() const { return ok_ && taken_ == values_ && escapes_ == escapes_end_; }

 private:
  std::span<const std::uint8_t> packed_;
  std::size_t values_;
  std::size_t taken_ = 0;          // numbers
  std::uint32_t escapes_ = 0;      // of those
  std::uint32_t escapes_end_ = 0;  // of all
  bool ok_;
};

// The same functions for one kind of processor, `pack` without a look at the sample; the last one
// that this processor knows is used.
struct PackVariant {
  const char* name;
  std::size_t (*pack)(std::span<const std::uint16_t> values, std::span<std::uint8_t> out);
  std::size_t (*try_pack)(std::span<const std::uint16_t> values, std::span<std::uint8_t> out);
  bool (*unpack)(std::span<const std::uint8_t> packed, std::span<std::uint16_t> values);
  // Groups from `first` on, of which `escapes` come before; raises `escapes`. PieceUnpacker's.
  bool (*unpack_groups)(std::span<const std::uint8_t> packed, std::size_t all_values,
                        std::size_t first, std::span<std::uint16_t> values, std::uint32_t& escapes);
};
std::span<const PackVariant> PackVariants();

}  // namespace kvshelf
