#include "kvshelf/crc64.h"

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "check.h"

namespace kvshelf {
namespace {

// Straight from the definition in docs/format.md, one bit at a time.
std::uint64_t Bitwise(const std::uint8_t* data, std::size_t bytes) {
  const std::uint64_t polynomial = 0xAD93D23594C93659;
  std::uint64_t state = ~std::uint64_t{0};
  for (std::size_t i = 0; i < bytes; ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      const std::uint64_t in = (data[i] >> bit) & 1;
      const std::uint64_t out = state >> 63;
      state = (state << 1) ^ ((in ^ out) != 0 ? polynomial : 0);
    }
  }
  std::uint64_t reflected = 0;
  for (int bit = 0; bit < 64; ++bit) reflected |= ((state >> bit) & 1) << (63 - bit);
  return ~reflected;
}

std::vector<std::uint8_t> RandomBytes(std::size_t bytes, std::mt19937_64& random) {
  std::vector<std::uint8_t> data(bytes);
  for (auto& byte : data) byte = static_cast<std::uint8_t>(random());
  return data;
}

void CheckValue() {
  for (const auto& variant : Crc64Variants()) {
    CHECK(variant.function(0, "123456789", 9) == 0xAE8B14860A799888);
    CHECK(variant.function(0, nullptr, 0) == 0);
  }
  CHECK(Crc64(0, "123456789", 9) == 0xAE8B14860A799888);
}

void EveryLengthAgreesWithTheDefinition() {
  std::mt19937_64 random(1);
  const auto data = RandomBytes(2048 + 64, random);
  for (std::size_t bytes = 0; bytes <= 2048; ++bytes) {
    const std::size_t offset = random() % 64;
    const std::uint64_t expected = Bitwise(data.data() + offset, bytes);
    for (const auto& variant : Crc64Variants()) {
      CHECK(variant.function(0, data.data() + offset, bytes) == expected);
    }
  }
}

void SplitsChain() {
  std::mt19937_64 random(2);
  const auto data = RandomBytes(20000, random);
  const std::uint64_t expected = Bitwise(data.data(), data.size());
  for (int round = 0; round < 300; ++round) {
    for (const auto& variant : Crc64Variants()) {
      std::uint64_t crc = 0;
      std::size_t done = 0;
      while (done < data.size()) {
        const std::size_t part = std::min<std::size_t>(random() % 5000, data.size() - done);
        crc = variant.function(crc, data.data() + done, part);
        done += part;
      }
      CHECK(crc == expected);
    }
  }
}

void PrintSpeed() {
  if (std::getenv("KVSHELF_SPEED") == nullptr) return;
  std::vector<std::uint8_t> data(256 << 10, 7);
  for (const auto& variant : Crc64Variants()) {
    double best = 0;
    std::uint64_t sink = 0;
    for (int round = 0; round < 20; ++round) {
      const auto start = std::chrono::steady_clock::now();
      for (int i = 0; i < 100; ++i) sink = variant.function(sink, data.data(), data.size());
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      best = std::max(best, 100.0 * static_cast<double>(data.size()) / seconds.count() / 1e9);
    }
    std::printf("%-9s %6.1f GB/s, 256 KiB hot in cache (%llx)\n", variant.name.data(), best,
                static_cast<unsigned long long>(sink));
  }
}

}  // namespace
}  // namespace kvshelf

int main() {
  return kvshelf::testing::RunTests({
      {"check value", kvshelf::CheckValue},
      {"every length agrees with the definition", kvshelf::EveryLengthAgreesWithTheDefinition},
      {"splits chain", kvshelf::SplitsChain},
      {"speed (with KVSHELF_SPEED set)", kvshelf::PrintSpeed},
  });
}
