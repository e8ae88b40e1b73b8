#include "kvshelf/crc64.h"

#include <array>
#include <cstring>

#include "crc64_math.h"

namespace kvshelf {
namespace crc64 {
namespace {

constexpr Tables kTables = MakeTables();

}  // namespace

std::uint64_t UpdatePortable(std::uint64_t state, const std::uint8_t* data, std::size_t bytes) {
  while (bytes >= 8) {
    std::uint64_t word;
    std::memcpy(&word, data, 8);
    word ^= state;
    state = kTables[7][word & 0xFF] ^ kTables[6][(word >> 8) & 0xFF] ^
            kTables[5][(word >> 16) & 0xFF] ^ kTables[4][(word >> 24) & 0xFF] ^
            kTables[3][(word >> 32) & 0xFF] ^ kTables[2][(word >> 40) & 0xFF] ^
            kTables[1][(word >> 48) & 0xFF] ^ kTables[0][word >> 56];
    data += 8;
    bytes -= 8;
  }
  while (bytes-- > 0) state = kTables[0][(state ^ *data++) & 0xFF] ^ (state >> 8);
  return state;
}

namespace {

using UpdateFunction = std::uint64_t (*)(std::uint64_t, const std::uint8_t*, std::size_t);

// Initial value and final XOR are both all ones, so one inversion before and one after make
// results chain.
template <UpdateFunction kUpdate>
std::uint64_t Checksum(std::uint64_t crc, const void* data, std::size_t bytes) {
  return ~kUpdate(~crc, static_cast<const std::uint8_t*>(data), bytes);
}

struct VariantList {
  std::array<Crc64Variant, 4> variants{};
  std::size_t count = 0;
};

VariantList FindVariants() {
  VariantList list;
  auto add = [&list](Crc64Variant variant) { list.variants[list.count++] = variant; };
  add({"portable", Checksum<UpdatePortable>});
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1")) {
    add({"pclmul", Checksum<UpdatePclmul>});
    if (__builtin_cpu_supports("vpclmulqdq") && __builtin_cpu_supports("avx2")) {
      add({"avx2", Checksum<UpdateAvx2>});
    }
    if (__builtin_cpu_supports("vpclmulqdq") && __builtin_cpu_supports("avx512f")) {
      add({"avx512", Checksum<UpdateAvx512>});
    }
  }
#endif
  return list;
}

const VariantList& Variants() {
  static const VariantList list = FindVariants();
  return list;
}

}  // namespace
}  // namespace crc64

std::span<const Crc64Variant> Crc64Variants() {
  const auto& list = crc64::Variants();
  return {list.variants.data(), list.count};
}

std::uint64_t Crc64(std::uint64_t crc, const void* data, std::size_t bytes) {
  return Crc64Variants().back().function(crc, data, bytes);
}

}  // namespace kvshelf
