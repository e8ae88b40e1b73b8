#include "kvshelf/bf16_pack.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string_view>
#include <vector>

#include "check.h"

namespace kvshelf {
namespace {

using Values = std::vector<std::uint16_t>;
using Bytes = std::vector<std::uint8_t>;

std::uint16_t Bf16(float value) {
  return static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16);
}

Values Gaussian(std::size_t count, std::mt19937_64& random) {
  std::normal_distribution<float> normal;
  Values values(count);
  for (auto& value : values) value = Bf16(normal(random));
  return values;
}

// Every exponent alike often: most are escapes.
Values Uniform(std::size_t count, std::mt19937_64& random) {
  Values values(count);
  for (auto& value : values) value = static_cast<std::uint16_t>(random());
  return values;
}

Bytes Packed(const PackVariant& variant, const Values& values) {
  Bytes out(PackedBytesMax(values.size(), values.size()));
  out.resize(variant.pack(values, out));
  return out;
}

void EveryNumberComesBack() {
  Values all(1 << 16);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::uint16_t>(i);
  for (const auto& variant : PackVariants()) {
    const Bytes packed = Packed(variant, all);
    CHECK(!packed.empty() && packed.size() % kPackAlignment == 0);
    Values back(all.size());
    CHECK(variant.unpack(packed, back) && back == all);
  }
}

void EveryLengthAndAllKindsAgree() {
  std::mt19937_64 random(1);
  for (const std::size_t count : {0, 1, 2, 63, 127, 128, 129, 2047, 2048, 2049, 4096, 10'000}) {
    for (const bool gaussian : {true, false}) {
      const Values values = gaussian ? Gaussian(count, random) : Uniform(count, random);
      const Bytes expected = Packed(PackVariants().front(), values);
      CHECK(!expected.empty());
      for (const auto& variant : PackVariants()) {
        CHECK(Packed(variant, values) == expected);
        Values back(count + 1, 7);
        CHECK(variant.unpack(expected, std::span(back).first(count)));
        CHECK(std::equal(values.begin(), values.end(), back.begin()) && back[count] == 7);
      }
    }
  }
}

void GaussianNumbersTakeTwelveBits() {
  std::mt19937_64 random(2);
  const Values values = Gaussian(2 << 20, random);
  const double plain = 2.0 * static_cast<double>(values.size());
  CHECK(plain / static_cast<double>(Packed(PackVariants().back(), values).size()) > 1.32);
}

void ZerosHaveACode() {
  std::mt19937_64 random(3);
  Values values = Gaussian(100'000, random);
  for (std::size_t i = 0; i < values.size(); i += 3) values[i] = i % 2 == 0 ? 0 : 0x8000;
  const Bytes packed = Packed(PackVariants().back(), values);
  Values back(values.size());
  CHECK(UnpackBf16(packed, back) && back == values);
  CHECK(packed.size() < values.size() * 2 * 77 / 100);
}

void WithoutRoomNothingIsPacked() {
  std::mt19937_64 random(4);
  const Values values = Uniform(5000, random);
  for (const auto& variant : PackVariants()) {
    const std::size_t needed = Packed(variant, values).size();
    for (const std::size_t room : {std::size_t{0}, std::size_t{255}, needed - 1}) {
      Bytes out(room + 64, 0xAB);
      CHECK(variant.pack(values, std::span(out).first(room)) == 0);
      for (std::size_t i = room; i < out.size(); ++i) CHECK(out[i] == 0xAB);
    }
    Bytes out(needed);
    CHECK(variant.pack(values, out) == needed);
  }
}

// Any damage is refused, or yields numbers; with sanitizers nothing outside is touched.
void DamageIsNeverOutOfBounds() {
  std::mt19937_64 random(5);
  Values values = Gaussian(5000, random);
  for (std::size_t i = 0; i < values.size(); i += 100) {
    values[i] = static_cast<std::uint16_t>(random());
  }
  const Bytes good = Packed(PackVariants().front(), values);
  Values back(values.size());
  const std::size_t head_and_index = 256 + 256;
  for (const auto& variant : PackVariants()) {
    for (std::size_t bit = 0; bit < 8 * head_and_index; ++bit) {
      Bytes bad = good;
      bad[bit / 8] ^= static_cast<std::uint8_t>(1 << bit % 8);
      variant.unpack(bad, back);
    }
    for (int round = 0; round < 2000; ++round) {
      Bytes bad = good;
      for (std::uint64_t left = 1 + random() % 8; left > 0; --left) {
        bad[random() % bad.size()] = static_cast<std::uint8_t>(random());
      }
      if (random() % 4 == 0) bad.resize(random() % bad.size());
      bad.shrink_to_fit();
      variant.unpack(bad, back);
    }
    for (const std::size_t cut : {std::size_t{0}, std::size_t{255}, good.size() - 256}) {
      CHECK(!variant.unpack(std::span(good).first(cut), back));
    }
    CHECK(!variant.unpack(good, std::span(back).first(4999)));
    Bytes bad = good;
    bad[256 + 4] ^= 1;  // the first group has one escape more, or fewer
    CHECK(!variant.unpack(bad, back));
  }
}

// As a reader unpacks a piece: 256 KiB at a time, or whatever fits.
void StepsGiveTheSameNumbers() {
  std::mt19937_64 random(7);
  Values values = Gaussian(50'000, random);
  for (std::size_t i = 0; i < values.size(); i += 70) {
    values[i] = static_cast<std::uint16_t>(random());
  }
  const Bytes packed = Packed(PackVariants().front(), values);
  for (const std::size_t step : {2048, 4096, 131'072}) {
    Values back(values.size());
    PieceUnpacker unpacker(packed, back.size());
    CHECK(!unpacker.AtEnd());
    for (std::size_t at = 0; at < back.size(); at += step) {
      CHECK(unpacker.Next(std::span(back).subspan(at, std::min(step, back.size() - at))));
    }
    CHECK(unpacker.AtEnd() && back == values);
    CHECK(!unpacker.Next(std::span(back).first(1)) && !unpacker.AtEnd());  // there are no more
  }
  Values back(values.size());
  PieceUnpacker odd(packed, back.size());
  CHECK(!odd.Next(std::span(back).first(100)) && !odd.Next(std::span(back).first(2048)));
  PieceUnpacker other(packed, back.size() - 1);
  CHECK(!other.Next(std::span(back).first(2048)) && !other.AtEnd());
}

// fp16, fp8 and bytes of any kind: the sample says so, before anything is packed.
void WhatIsNoBf16IsNotPacked() {
  std::mt19937_64 random(8);
  const Values bytes = Uniform(500'000, random), numbers = Gaussian(500'000, random);
  Values halves(numbers.size());
  for (std::size_t i = 0; i < halves.size(); ++i) {  // of the same numbers, with a longer mantissa
    const std::uint32_t exponent = std::clamp(numbers[i] >> 7 & 255, 113, 142) - 112u;
    const std::uint32_t mantissa = (numbers[i] & 127u) << 3 | (random() & 7);
    halves[i] = static_cast<std::uint16_t>((numbers[i] & 0x8000) | exponent << 10 | mantissa);
  }
  Bytes out(bytes.size() * 2 / 16 * 15);
  CHECK(PackBf16(bytes, out) == 0 && PackBf16(halves, out) == 0);
  CHECK(PackBf16(numbers, out) > 0);
}

void Speed() {
  std::mt19937_64 random(6);
  const Values values = Gaussian(128 << 10, random);  // 256 KiB: a step
  Values back(values.size());
  for (const auto& variant : PackVariants()) {
    Bytes packed(PackedBytesMax(values.size(), values.size()));
    double best_pack = 1e9, best_unpack = 1e9;
    std::size_t bytes = 0;
    for (int round = 0; round < 200; ++round) {
      const auto begin = std::chrono::steady_clock::now();
      bytes = variant.pack(values, packed);
      const auto middle = std::chrono::steady_clock::now();
      CHECK(variant.unpack(std::span(packed).first(bytes), back));
      const std::chrono::duration<double> unpack = std::chrono::steady_clock::now() - middle;
      best_pack = std::min(best_pack, std::chrono::duration<double>(middle - begin).count());
      best_unpack = std::min(best_unpack, unpack.count());
    }
    const double gigabytes = 2e-9 * static_cast<double>(values.size());
    std::printf("%-8s pack %.1f GB/s, unpack %.1f GB/s of plain bytes, ratio %.3f\n", variant.name,
                gigabytes / best_pack, gigabytes / best_unpack,
                1e9 * gigabytes / static_cast<double>(bytes));
  }
}

}  // namespace
}  // namespace kvshelf

int main(int argc, char** argv) {
  using namespace kvshelf;
  if (argc > 1 && std::string_view(argv[1]) == "--speed") {
    Speed();
    return 0;
  }
  return testing::RunTests({
      {"every number comes back", EveryNumberComesBack},
      {"every length and all kinds agree", EveryLengthAndAllKindsAgree},
      {"gaussian numbers take twelve bits", GaussianNumbersTakeTwelveBits},
      {"zeros have a code", ZerosHaveACode},
      {"without room nothing is packed", WithoutRoomNothingIsPacked},
      {"steps give the same numbers", StepsGiveTheSameNumbers},
      {"what is no bf16 is not packed", WhatIsNoBf16IsNotPacked},
      {"damage is never out of bounds", DamageIsNeverOutOfBounds},
  });
}
