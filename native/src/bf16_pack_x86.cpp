// Groups of bf16 numbers, packed and unpacked 128 at a time: codes by shuffles of 16-byte tables.
#include "bf16_pack_parts.h"

#if defined(__x86_64__)

// GCC 12 warns of its own intrinsics header (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#define KVSHELF_AVX2 __attribute__((target("avx2")))
#define KVSHELF_AVX512 __attribute__((target("avx512f,avx512bw,avx512vbmi")))

namespace kvshelf::packing {
namespace {

constexpr std::size_t kHalf = kPackBlockValues / 2;

// What of a number's two bytes its exponent is, by code.
struct ExponentBytes {
  alignas(16) std::uint8_t low[16];
  alignas(16) std::uint8_t high[16];
};

ExponentBytes BytesOf(const PackTable& table) {
  ExponentBytes bytes;
  for (std::size_t code = 0; code < 16; ++code) {
    bytes.low[code] = static_cast<std::uint8_t>(table.exponents[code] << 7);
    bytes.high[code] = static_cast<std::uint8_t>(table.exponents[code] >> 1);
  }
  return bytes;
}

KVSHELF_AVX2 inline __m256i Load256(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}

KVSHELF_AVX2 inline void Store256(void* to, __m256i value) {
  _mm256_storeu_si256(static_cast<__m256i*>(to), value);
}

KVSHELF_AVX2 inline __m256i Table256(const std::uint8_t* bytes) {
  return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
}

// 32 numbers of these codes.
KVSHELF_AVX2 inline void Join256(__m256i codes, __m256i rest, __m256i low_table, __m256i high_table,
                                 std::uint16_t* to) {
  const __m256i sign = _mm256_set1_epi8(static_cast<char>(0x80));
  // Lanes are shuffled apart: the bytes that go together must lie in the same lane.
  codes = _mm256_permute4x64_epi64(codes, 0xD8);
  rest = _mm256_permute4x64_epi64(rest, 0xD8);
  const __m256i low =
      _mm256_or_si256(_mm256_shuffle_epi8(low_table, codes), _mm256_andnot_si256(sign, rest));
  const __m256i high =
      _mm256_or_si256(_mm256_shuffle_epi8(high_table, codes), _mm256_and_si256(sign, rest));
  Store256(to, _mm256_unpacklo_epi8(low, high));
  Store256(to + 16, _mm256_unpackhi_epi8(low, high));
}

KVSHELF_AVX2 inline __m256i Exponents256(__m256i values) {
  return _mm256_and_si256(_mm256_srli_epi16(values, 7), _mm256_set1_epi16(0xFF));
}

KVSHELF_AVX2 inline __m256i Rest256(__m256i values) {
  return _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(values, 8), _mm256_set1_epi16(0x80)),
                         _mm256_and_si256(values, _mm256_set1_epi16(0x7F)));
}

// The lower bytes of 32 words, in order.
KVSHELF_AVX2 inline __m256i Narrow256(__m256i first, __m256i second) {
  return _mm256_permute4x64_epi64(_mm256_packus_epi16(first, second), 0xD8);
}

// How exponents become codes: by rows of 16 exponents that have the higher half byte in common. Few
// rows have any exponent of the table.
struct Codes256 {
  __m256i rows[16];   // their higher halves
  __m256i codes[16];  // kEscape ^ code, by the lower half
  std::size_t count = 0;
};

KVSHELF_AVX2 Codes256 CodesOf(const PackTable& table) {
  Codes256 by;
  for (std::size_t row = 0; row < 16; ++row) {
    const __m128i codes =
        _mm_load_si128(reinterpret_cast<const __m128i*>(table.codes.data() + 16 * row));
    const __m128i differences = _mm_xor_si128(codes, _mm_set1_epi8(kEscape));
    if (_mm_testz_si128(differences, differences) != 0) continue;
    by.rows[by.count] = _mm256_set1_epi8(static_cast<char>(row));
    by.codes[by.count++] = _mm256_broadcastsi128_si256(differences);
  }
  return by;
}

// Writes the rest of 32 numbers, returns their codes.
KVSHELF_AVX2 inline __m256i Split256(const Codes256& by, const std::uint16_t* from,
                                     std::uint8_t* rest) {
  const __m256i first = Load256(from), second = Load256(from + 16);
  Store256(rest, Narrow256(Rest256(first), Rest256(second)));
  const __m256i exponents = Narrow256(Exponents256(first), Exponents256(second));
  const __m256i half = _mm256_set1_epi8(15);
  const __m256i high = _mm256_and_si256(_mm256_srli_epi16(exponents, 4), half);
  const __m256i low = _mm256_and_si256(exponents, half);
  __m256i codes = half;  // kEscape
  for (std::size_t row = 0; row < by.count; ++row) {
    const __m256i is_here = _mm256_cmpeq_epi8(high, by.rows[row]);
    const __m256i here = _mm256_shuffle_epi8(by.codes[row], low);
    codes = _mm256_xor_si256(codes, _mm256_and_si256(is_here, here));
  }
  return codes;
}

}  // namespace

KVSHELF_AVX2 void UnpackAvx2(const PackTable& table, const std::uint8_t* area, std::size_t groups,
                             std::uint16_t* values, std::uint16_t* escaped) {
  const ExponentBytes bytes = BytesOf(table);
  const __m256i low = Table256(bytes.low), high = Table256(bytes.high);
  const __m256i nibble = _mm256_set1_epi8(15);
  for (std::size_t group = 0; group < groups; ++group, area += kGroupBytes) {
    const std::uint8_t* codes = area;
    const std::uint8_t* rest = area + kGroupCodeBytes;
    unsigned blocks = 0;
    for (std::size_t block = 0; block < kBlocksPerGroup; ++block) {
      __m256i escapes = _mm256_setzero_si256();
      for (std::size_t i = 0; i < kHalf; i += 32) {
        const __m256i both = Load256(codes + i);
        const __m256i first = _mm256_and_si256(both, nibble);
        const __m256i second = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
        escapes = _mm256_or_si256(escapes, _mm256_or_si256(_mm256_cmpeq_epi8(first, nibble),
                                                           _mm256_cmpeq_epi8(second, nibble)));
        Join256(first, Load256(rest + i), low, high, values + i);
        Join256(second, Load256(rest + kHalf + i), low, high, values + kHalf + i);
      }
      blocks |= static_cast<unsigned>(_mm256_testz_si256(escapes, escapes) ^ 1) << block;
      codes += kHalf;
      rest += kPackBlockValues;
      values += kPackBlockValues;
    }
    escaped[group] = static_cast<std::uint16_t>(blocks);
  }
}

KVSHELF_AVX2 void PackAvx2(const PackTable& table, const std::uint16_t* values, std::size_t groups,
                           std::uint8_t* area, std::uint16_t* escaped) {
  const Codes256 table_codes = CodesOf(table);
  const __m256i nibble = _mm256_set1_epi8(15);
  for (std::size_t group = 0; group < groups; ++group, area += kGroupBytes) {
    std::uint8_t* codes = area;
    std::uint8_t* rest = area + kGroupCodeBytes;
    unsigned blocks = 0;
    for (std::size_t block = 0; block < kBlocksPerGroup; ++block) {
      __m256i escapes = _mm256_setzero_si256();
      for (std::size_t i = 0; i < kHalf; i += 32) {
        const __m256i low = Split256(table_codes, values + i, rest + i);
        const __m256i high = Split256(table_codes, values + kHalf + i, rest + kHalf + i);
        escapes = _mm256_or_si256(escapes, _mm256_or_si256(_mm256_cmpeq_epi8(low, nibble),
                                                           _mm256_cmpeq_epi8(high, nibble)));
        Store256(codes + i, _mm256_or_si256(low, _mm256_slli_epi16(high, 4)));
      }
      blocks |= static_cast<unsigned>(_mm256_testz_si256(escapes, escapes) ^ 1) << block;
      codes += kHalf;
      rest += kPackBlockValues;
      values += kPackBlockValues;
    }
    escaped[group] = static_cast<std::uint16_t>(blocks);
  }
}

namespace {

// Byte i of the first 64 in pairs with byte i of the second 64; the first 32 pairs, or the others.
KVSHELF_AVX512 inline __m512i PairsFrom(int first) {
  alignas(64) std::uint8_t index[64];
  for (int i = 0; i < 32; ++i) {
    index[2 * i] = static_cast<std::uint8_t>(first + i);
    index[2 * i + 1] = static_cast<std::uint8_t>(64 + first + i);
  }
  return _mm512_load_si512(index);
}

// The even bytes of two registers, or the odd ones.
KVSHELF_AVX512 inline __m512i EachSecond(int first) {
  alignas(64) std::uint8_t index[64];
  for (int i = 0; i < 64; ++i) index[i] = static_cast<std::uint8_t>(2 * i + first);
  return _mm512_load_si512(index);
}

KVSHELF_AVX512 inline __m512i Table512(const std::uint8_t* bytes) {
  return _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
}

struct Join512 {
  __m512i low_table, high_table, sign, front, back;
};

// 64 numbers of these codes.
KVSHELF_AVX512 inline void Join(const Join512& by, __m512i codes, const std::uint8_t* rest,
                                std::uint16_t* to) {
  const __m512i other = _mm512_loadu_si512(rest);
  // 0xF4: a or (b and not c). 0xF8: a or (b and c).
  const __m512i low =
      _mm512_ternarylogic_epi64(_mm512_shuffle_epi8(by.low_table, codes), other, by.sign, 0xF4);
  const __m512i high =
      _mm512_ternarylogic_epi64(_mm512_shuffle_epi8(by.high_table, codes), other, by.sign, 0xF8);
  _mm512_storeu_si512(to, _mm512_permutex2var_epi8(low, by.front, high));
  _mm512_storeu_si512(to + 32, _mm512_permutex2var_epi8(low, by.back, high));
}

struct Split512 {
  __m512i tables[4];
  __m512i even, odd, sign;
};

// Writes the rest of 64 numbers, returns their codes.
KVSHELF_AVX512 inline __m512i Split(const Split512& by, const std::uint16_t* from,
                                    std::uint8_t* rest) {
  const __m512i first = _mm512_loadu_si512(from), second = _mm512_loadu_si512(from + 32);
  const __m512i low = _mm512_permutex2var_epi8(first, by.even, second);
  const __m512i high = _mm512_permutex2var_epi8(first, by.odd, second);
  // 0xCA: each bit of b where a has one, else of c.
  _mm512_storeu_si512(rest, _mm512_ternarylogic_epi64(by.sign, high, low, 0xCA));
  // Twice the high byte's lower seven bits, and the low byte's highest.
  const __m512i top = _mm512_and_si512(_mm512_srli_epi16(low, 7), _mm512_set1_epi8(1));
  const __m512i exponents = _mm512_or_si512(_mm512_add_epi8(high, high), top);
  const __m512i lower = _mm512_permutex2var_epi8(by.tables[0], exponents, by.tables[1]);
  const __m512i upper = _mm512_permutex2var_epi8(by.tables[2], exponents, by.tables[3]);
  return _mm512_mask_blend_epi8(_mm512_movepi8_mask(exponents), lower, upper);
}

}  // namespace

KVSHELF_AVX512 void UnpackAvx512(const PackTable& table, const std::uint8_t* area,
                                 std::size_t groups, std::uint16_t* values,
                                 std::uint16_t* escaped) {
  const ExponentBytes bytes = BytesOf(table);
  const Join512 by{Table512(bytes.low), Table512(bytes.high),
                   _mm512_set1_epi8(static_cast<char>(0x80)), PairsFrom(0), PairsFrom(32)};
  const __m512i nibble = _mm512_set1_epi8(15);
  for (std::size_t group = 0; group < groups; ++group, area += kGroupBytes) {
    const std::uint8_t* rest = area + kGroupCodeBytes;
    unsigned blocks = 0;
    for (std::size_t block = 0; block < kBlocksPerGroup; ++block) {
      const __m512i both = _mm512_loadu_si512(area + block * kHalf);
      const __m512i low = _mm512_and_si512(both, nibble);
      const __m512i high = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
      const bool any =
          (_mm512_cmpeq_epi8_mask(low, nibble) | _mm512_cmpeq_epi8_mask(high, nibble)) != 0;
      blocks |= static_cast<unsigned>(any) << block;
      Join(by, low, rest, values);
      Join(by, high, rest + kHalf, values + kHalf);
      rest += kPackBlockValues;
      values += kPackBlockValues;
    }
    escaped[group] = static_cast<std::uint16_t>(blocks);
  }
}

KVSHELF_AVX512 void PackAvx512(const PackTable& table, const std::uint16_t* values,
                               std::size_t groups, std::uint8_t* area, std::uint16_t* escaped) {
  const std::uint8_t* const all = table.codes.data();
  const Split512 by{{_mm512_load_si512(all), _mm512_load_si512(all + 64),
                     _mm512_load_si512(all + 128), _mm512_load_si512(all + 192)},
                    EachSecond(0),
                    EachSecond(1),
                    _mm512_set1_epi8(static_cast<char>(0x80))};
  const __m512i nibble = _mm512_set1_epi8(15);
  for (std::size_t group = 0; group < groups; ++group, area += kGroupBytes) {
    std::uint8_t* rest = area + kGroupCodeBytes;
    unsigned blocks = 0;
    for (std::size_t block = 0; block < kBlocksPerGroup; ++block) {
      const __m512i low = Split(by, values, rest), high = Split(by, values + kHalf, rest + kHalf);
      const bool any =
          (_mm512_cmpeq_epi8_mask(low, nibble) | _mm512_cmpeq_epi8_mask(high, nibble)) != 0;
      blocks |= static_cast<unsigned>(any) << block;
      _mm512_storeu_si512(area + block * kHalf, _mm512_or_si512(low, _mm512_slli_epi16(high, 4)));
      rest += kPackBlockValues;
      values += kPackBlockValues;
    }
    escaped[group] = static_cast<std::uint16_t>(blocks);
  }
}

}  // namespace kvshelf::packing

#endif
