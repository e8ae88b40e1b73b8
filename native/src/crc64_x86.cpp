// CRC-64/NVME by carry-less multiplication: the message is folded into a few 128-bit accumulators
// that are congruent to it modulo the polynomial; the tables finish the last 16 bytes. Method:
// V. Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ", Intel 2009.
#include "crc64_math.h"

#if defined(__x86_64__)

// GCC 12 warns of its own intrinsics header (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

// Attributes instead of -march: one binary serves every x86-64 processor.
#define KVSHELF_PCLMUL __attribute__((target("pclmul,sse4.1")))
#define KVSHELF_AVX2 __attribute__((target("vpclmulqdq,pclmul,avx2")))
#define KVSHELF_AVX512 __attribute__((target("vpclmulqdq,pclmul,avx512f")))

namespace kvshelf::crc64 {
namespace {

KVSHELF_PCLMUL inline __m128i Constants(Fold fold) {
  return _mm_set_epi64x(static_cast<long long>(fold.high), static_cast<long long>(fold.low));
}

KVSHELF_PCLMUL inline __m128i Load(const std::uint8_t* data) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(data));
}

KVSHELF_PCLMUL inline __m128i Advance(__m128i value, __m128i fold, __m128i next) {
  const __m128i low = _mm_clmulepi64_si128(value, fold, 0x00);
  const __m128i high = _mm_clmulepi64_si128(value, fold, 0x11);
  return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

KVSHELF_PCLMUL std::uint64_t Finish(__m128i value, const std::uint8_t* data, std::size_t bytes) {
  const __m128i fold = Constants(FoldBy(128));
  for (; bytes >= 16; data += 16, bytes -= 16) value = Advance(value, fold, Load(data));
  alignas(16) std::uint8_t rest[16];
  _mm_store_si128(reinterpret_cast<__m128i*>(rest), value);
  return UpdatePortable(UpdatePortable(0, rest, sizeof(rest)), data, bytes);
}

KVSHELF_AVX2 inline __m256i Load256(const std::uint8_t* data) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data));
}

KVSHELF_AVX2 inline __m256i Advance256(__m256i value, __m256i fold, __m256i next) {
  const __m256i low = _mm256_clmulepi64_epi128(value, fold, 0x00);
  const __m256i high = _mm256_clmulepi64_epi128(value, fold, 0x11);
  return _mm256_xor_si256(_mm256_xor_si256(low, high), next);
}

KVSHELF_AVX512 inline __m512i Load512(const std::uint8_t* data) { return _mm512_loadu_si512(data); }

KVSHELF_AVX512 inline __m512i Advance512(__m512i value, __m512i fold, __m512i next) {
  const __m512i low = _mm512_clmulepi64_epi128(value, fold, 0x00);
  const __m512i high = _mm512_clmulepi64_epi128(value, fold, 0x11);
  return _mm512_ternarylogic_epi64(low, high, next, 0x96);  // 0x96: exclusive or of three
}

}  // namespace

KVSHELF_PCLMUL std::uint64_t UpdatePclmul(std::uint64_t state, const std::uint8_t* data,
                                          std::size_t bytes) {
  constexpr std::size_t kStride = 128;  // eight accumulators hide the latency of a multiplication
  if (bytes < kStride) return UpdatePortable(state, data, bytes);
  __m128i lanes[8];
  for (int i = 0; i < 8; ++i) lanes[i] = Load(data + 16 * i);
  lanes[0] = _mm_xor_si128(lanes[0], _mm_set_epi64x(0, static_cast<long long>(state)));
  data += kStride;
  bytes -= kStride;
  const __m128i far = Constants(FoldBy(8 * kStride));
  for (; bytes >= kStride; data += kStride, bytes -= kStride) {
    for (int i = 0; i < 8; ++i) lanes[i] = Advance(lanes[i], far, Load(data + 16 * i));
  }
  const __m128i near = Constants(FoldBy(128));
  __m128i value = lanes[0];
  for (int i = 1; i < 8; ++i) value = Advance(value, near, lanes[i]);
  return Finish(value, data, bytes);
}

KVSHELF_AVX2 std::uint64_t UpdateAvx2(std::uint64_t state, const std::uint8_t* data,
                                      std::size_t bytes) {
  constexpr std::size_t kStride = 256;
  if (bytes < kStride) return UpdatePclmul(state, data, bytes);
  __m256i lanes[8];
  for (int i = 0; i < 8; ++i) lanes[i] = Load256(data + 32 * i);
  lanes[0] = _mm256_xor_si256(lanes[0], _mm256_set_epi64x(0, 0, 0, static_cast<long long>(state)));
  data += kStride;
  bytes -= kStride;
  const __m256i far = _mm256_broadcastsi128_si256(Constants(FoldBy(8 * kStride)));
  for (; bytes >= kStride; data += kStride, bytes -= kStride) {
    for (int i = 0; i < 8; ++i) lanes[i] = Advance256(lanes[i], far, Load256(data + 32 * i));
  }
  const __m256i near = _mm256_broadcastsi128_si256(Constants(FoldBy(256)));
  __m256i value = lanes[0];
  for (int i = 1; i < 8; ++i) value = Advance256(value, near, lanes[i]);
  const __m128i folded = Advance(_mm256_castsi256_si128(value), Constants(FoldBy(128)),
                                 _mm256_extracti128_si256(value, 1));
  return Finish(folded, data, bytes);
}

KVSHELF_AVX512 std::uint64_t UpdateAvx512(std::uint64_t state, const std::uint8_t* data,
                                          std::size_t bytes) {
  constexpr std::size_t kStride = 512;
  if (bytes < kStride) return UpdatePclmul(state, data, bytes);
  __m512i lanes[8];
  for (int i = 0; i < 8; ++i) lanes[i] = Load512(data + 64 * i);
  lanes[0] = _mm512_xor_si512(
      lanes[0], _mm512_zextsi128_si512(_mm_set_epi64x(0, static_cast<long long>(state))));
  data += kStride;
  bytes -= kStride;
  const __m512i far = _mm512_broadcast_i32x4(Constants(FoldBy(8 * kStride)));
  for (; bytes >= kStride; data += kStride, bytes -= kStride) {
    for (int i = 0; i < 8; ++i) lanes[i] = Advance512(lanes[i], far, Load512(data + 64 * i));
  }
  const __m512i near = _mm512_broadcast_i32x4(Constants(FoldBy(512)));
  __m512i value = lanes[0];
  for (int i = 1; i < 8; ++i) value = Advance512(value, near, lanes[i]);
  const __m128i fold = Constants(FoldBy(128));
  __m128i folded = _mm512_castsi512_si128(value);
  folded = Advance(folded, fold, _mm512_extracti32x4_epi32(value, 1));
  folded = Advance(folded, fold, _mm512_extracti32x4_epi32(value, 2));
  folded = Advance(folded, fold, _mm512_extracti32x4_epi32(value, 3));
  return Finish(folded, data, bytes);
}

}  // namespace kvshelf::crc64

#endif  // __x86_64__
