// Packing of bf16 numbers: what is packed comes back, all kinds of processors agree, and no packed
// bytes lead outside their spans.
#include <algorithm>

#include "fuzz.h"
#include "kvshelf/bf16_pack.h"

namespace kvshelf::fuzz {
namespace {

constexpr std::size_t kValuesMax = 20'000;

void CheckNumbers(const std::vector<std::uint16_t>& values) {
  std::vector<std::uint8_t> first(PackedBytesMax(values.size(), values.size()));
  first.resize(PackVariants().front().pack(values, first));
  DEMAND(!first.empty());
  for (const PackVariant& variant : PackVariants()) {
    std::vector<std::uint8_t> packed(first.size());
    DEMAND(variant.pack(values, packed) == first.size() && packed == first);
    std::vector<std::uint16_t> back(values.size());
    DEMAND(variant.unpack(packed, back) && back == values);
    packed.resize(packed.size() - 1);
    DEMAND(variant.pack(values, packed) == 0);
  }
}

// The head's numbers made to agree with the sizes: mutations of them hardly ever would.
void Repair(std::vector<std::uint8_t>& packed, std::uint32_t values) {
  const std::size_t plain = PackedBytesMax(values, 0);
  const auto escapes =
      static_cast<std::uint32_t>(packed.size() > plain ? packed.size() - plain : 0);
  const std::uint8_t start[8] = {0x56, 0x4B, 0x50, 0x31, 4, 0, 15, 0};
  packed.resize(PackedBytesMax(values, escapes));
  std::memcpy(packed.data(), start, sizeof(start));
  std::memcpy(packed.data() + 8, &values, sizeof(values));
  std::memcpy(packed.data() + 12, &escapes, sizeof(escapes));
}

// In steps of one group, then two, and so on: the same numbers, or none.
void CheckSteps(std::span<const std::uint8_t> packed, const std::vector<std::uint16_t>& whole,
                bool is_good) {
  std::vector<std::uint16_t> back(whole.size());
  PieceUnpacker unpacker(packed, back.size());
  bool unpacks = true;
  for (std::size_t at = 0, step = kPackGroupValues; at < back.size() && unpacks;
       at += step, step += kPackGroupValues) {
    unpacks = unpacker.Next(std::span(back).subspan(at, std::min(step, back.size() - at)));
  }
  DEMAND((unpacks && unpacker.AtEnd()) == is_good);
  DEMAND(!is_good || back == whole);
}

void CheckPacked(std::vector<std::uint8_t> packed, std::uint32_t values, bool repair) {
  if (repair) Repair(packed, values);
  packed.shrink_to_fit();  // so that a sanitizer sees its end
  std::vector<std::uint16_t> first(values);
  const bool is_good = PackVariants().front().unpack(packed, first);
  for (const PackVariant& variant : PackVariants()) {
    std::vector<std::uint16_t> back(values);
    DEMAND(variant.unpack(packed, back) == is_good);
    DEMAND(!is_good || back == first);
  }
  CheckSteps(packed, first, is_good);
}

}  // namespace

std::vector<std::string> Seeds(const std::vector<std::string>& vectors) {
  std::vector<std::string> seeds = vectors;
  for (const std::string& vector : vectors) {
    const std::size_t count = vector.size() / 2;
    std::vector<std::uint16_t> values(count);
    if (count > 0) std::memcpy(values.data(), vector.data(), 2 * count);
    std::string packed(PackedBytesMax(count, count), '\0');
    packed.resize(
        PackBf16(values, {reinterpret_cast<std::uint8_t*>(packed.data()), packed.size()}));
    const auto number = static_cast<std::uint32_t>(count);
    std::string seed(1, '\1');
    seed.append(reinterpret_cast<const char*>(&number), sizeof(number));
    seeds.push_back(seed + packed);
  }
  return seeds;
}

}  // namespace kvshelf::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes) {
  using namespace kvshelf::fuzz;
  Input input(data, bytes);
  const auto flags = input.Take<std::uint8_t>();
  if ((flags & 1) == 0) {
    std::vector<std::uint16_t> values(std::min(input.rest().size() / 2, kValuesMax));
    if (!values.empty()) std::memcpy(values.data(), input.rest().data(), 2 * values.size());
    CheckNumbers(values);
    return 0;
  }
  const auto count = static_cast<std::uint32_t>(input.Take<std::uint32_t>() % (kValuesMax + 1));
  CheckPacked({input.rest().begin(), input.rest().end()}, count, (flags & 2) != 0);
  return 0;
}
