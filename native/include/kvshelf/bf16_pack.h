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

#include <array>
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

namespace packing {
struct Kernels;  // the loops for one kind of processor
}

// Exponents and codes, both ways.
struct PackTable {
  std::array<std::uint8_t, 16> exponents{};           // by code; that of an escape is 0
  alignas(64) std::array<std::uint8_t, 256> codes{};  // by exponent
  std::uint8_t entries = 0;
};

// Exponents of some of a piece's numbers, from which its table is made.
class ExponentSample {
 public:
  // `values`: of the whole piece.
  explicit ExponentSample(std::size_t values);
  // The next numbers.
  void Add(std::span<const std::uint16_t> values);
  // The most frequent exponents, rarest last; then those beside them, which a sample may lack.
  PackTable MakeTable() const;
  // How many escapes the whole piece has, if it is like the sample.
  std::size_t EscapesWith(const PackTable& table) const;

 private:
  std::size_t values_;
  std::size_t stride_;
  std::size_t next_ = 0;
  std::size_t sampled_ = 0;
  std::array<std::uint32_t, 256> counts_{};
};

// Packs a piece in steps, wherever its numbers lie. One thread.
class PiecePacker {
 public:
  // `values`: of the whole piece. `kernels` null: the best that this processor knows.
  PiecePacker(const PackTable& table, std::size_t values, std::span<std::uint8_t> out,
              const packing::Kernels* kernels = nullptr);
  // The next numbers: a multiple of kPackGroupValues, but for the last. False: there is no room.
  bool Add(std::span<const std::uint16_t> values);
  // The bytes written, or 0, as PackBf16.
  std::size_t Finish();

 private:
  bool AddGroups(const std::uint16_t* values, std::size_t groups);

  const packing::Kernels& kernels_;
  const PackTable table_;
  std::span<std::uint8_t> out_;
  std::size_t values_;
  std::size_t taken_ = 0;    // numbers
  std::size_t escapes_ = 0;  // of those
  bool ok_;
};

// Unpacks a piece in steps, each of which is used while it is in cache. One thread; `packed` must
// stay as it is.
class PieceUnpacker {
 public:
  PieceUnpacker(std::span<const std::uint8_t> packed, std::size_t values,
                const packing::Kernels* kernels = nullptr);
  // The next numbers: a multiple of kPackGroupValues, but for the last. False as UnpackBf16.
  bool Next(std::span<std::uint16_t> values);
  // Whether all numbers were taken and nothing is left over.
  bool AtEnd() const { return ok_ && taken_ == values_ && escapes_ == list_.size(); }

 private:
  bool NextGroups(std::span<std::uint16_t> values);

  const packing::Kernels& kernels_;
  std::span<const std::uint8_t> packed_;
  std::span<const std::uint8_t> list_;  // of escapes
  std::size_t values_;
  std::size_t taken_ = 0;      // numbers
  std::uint32_t escapes_ = 0;  // of those
  PackTable table_;
  bool ok_;
};

// The same functions for one kind of processor; the last one that this processor knows is used.
struct PackVariant {
  const char* name;
  std::size_t (*pack)(std::span<const std::uint16_t> values, std::span<std::uint8_t> out);
  bool (*unpack)(std::span<const std::uint8_t> packed, std::span<std::uint16_t> values);
};
std::span<const PackVariant> PackVariants();

}  // namespace kvshelf
