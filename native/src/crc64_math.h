// Constants of CRC-64/NVME, derived at compile time from its polynomial.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace kvshelf::crc64 {

// RevEng's CRC-64/NVME, without the leading x^64.
inline constexpr std::uint64_t kPolynomial = 0xAD93D23594C93659;

constexpr std::uint64_t Reverse(std::uint64_t value) {
  std::uint64_t reversed = 0;
  for (int bit = 0; bit < 64; ++bit) reversed |= ((value >> bit) & 1) << (63 - bit);
  return reversed;
}

inline constexpr std::uint64_t kReflected = Reverse(kPolynomial);

// x^n mod P, reflected: bit 63 is the coefficient of x^0.
constexpr std::uint64_t PowerOfX(unsigned n) {
  std::uint64_t value = std::uint64_t{1} << 63;
  for (unsigned i = 0; i < n; ++i) value = (value >> 1) ^ ((value & 1) != 0 ? kReflected : 0);
  return value;
}

// Multipliers that move a 128-bit reflected value `bits` ahead in the message.
// The product of two reflected 64-bit values is the reflected product times x, hence the - 1; the
// low word holds the higher powers, hence + 64 there.
struct Fold {
  std::uint64_t low;
  std::uint64_t high;
};
constexpr Fold FoldBy(unsigned bits) { return {PowerOfX(bits + 64 - 1), PowerOfX(bits - 1)}; }

using Tables = std::array<std::array<std::uint64_t, 256>, 8>;

// tables[k][b]: the effect of byte b that is followed by k more bytes.
constexpr Tables MakeTables() {
  Tables tables{};
  for (std::size_t byte = 0; byte < 256; ++byte) {
    std::uint64_t value = byte;
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1) != 0 ? kReflected : 0);
    tables[0][byte] = value;
  }
  for (std::size_t k = 1; k < 8; ++k) {
    for (std::size_t byte = 0; byte < 256; ++byte) {
      const std::uint64_t previous = tables[k - 1][byte];
      tables[k][byte] = tables[0][previous & 0xFF] ^ (previous >> 8);
    }
  }
  return tables;
}

// All work on the register between the initial and the final inversion, which crc64.cpp does.
std::uint64_t UpdatePortable(std::uint64_t state, const std::uint8_t* data, std::size_t bytes);

#if defined(__x86_64__)
// REQUIRES: the processor has PCLMULQDQ; VPCLMULQDQ and AVX2; VPCLMULQDQ and AVX512F.
std::uint64_t UpdatePclmul(std::uint64_t state, const std::uint8_t* data, std::size_t bytes);
std::uint64_t UpdateAvx2(std::uint64_t state, const std::uint8_t* data, std::size_t bytes);
std::uint64_t UpdateAvx512(std::uint64_t state, const std::uint8_t* data, std::size_t bytes);
#endif

}  // namespace kvshelf::crc64
