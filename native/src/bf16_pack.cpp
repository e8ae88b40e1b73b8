#include "kvshelf/bf16_pack.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "bf16_pack_parts.h"

namespace kvshelf {
namespace packing {
namespace {

// Numbers in a sample. Each costs a wait for memory where the piece is not in cache.
constexpr std::size_t kSampleValues = 1024;

constexpr std::size_t Aligned(std::size_t bytes) {
  return (bytes + kPackAlignment - 1) / kPackAlignment * kPackAlignment;
}

constexpr std::size_t Groups(std::size_t values) {
  return (values + kPackGroupValues - 1) / kPackGroupValues;
}

constexpr std::uint8_t Exponent(std::uint16_t value) {
  return static_cast<std::uint8_t>(value >> 7);
}

// Of each half byte the lowest bit, if all four are set.
constexpr std::uint64_t EscapesIn(std::uint64_t word) {
  word &= word >> 1;
  word &= word >> 2;
  return word & 0x1111111111111111;
}

// Where the sections of a packed piece begin; the list of escapes is the last.
struct Layout {
  explicit Layout(std::size_t values)
      : groups(sizeof(Head) + Aligned((Groups(values) + 1) * sizeof(std::uint32_t))),
        escapes(groups + Groups(values) * kGroupBytes) {}

  std::size_t Bytes(std::size_t escape_count) const { return escapes + Aligned(escape_count); }

  std::size_t groups;
  std::size_t escapes;
};

std::uint8_t CodeAt(const std::uint8_t* codes, std::size_t value) {
  const std::size_t in_block = value % kPackBlockValues;
  const std::size_t half = kPackBlockValues / 2;
  const std::uint8_t both = codes[value / kPackBlockValues * half + in_block % half];
  return in_block < half ? both & 15 : both >> 4;
}

// Calls `found` with the place of each escape of a group, in the order of the list: by bytes of
// codes, the lower half of a byte first. `blocks`: those that have any. Ends early if it says
// false.
template <typename Found>
bool ForEscapes(const std::uint8_t* codes, unsigned blocks, Found found) {
  constexpr std::size_t kHalf = kPackBlockValues / 2;
  for (; blocks != 0; blocks &= blocks - 1) {
    const auto block = static_cast<std::size_t>(std::countr_zero(blocks));
    for (std::size_t begin = 0; begin < kHalf; begin += 8) {
      std::uint64_t word;
      std::memcpy(&word, codes + block * kHalf + begin, sizeof(word));
      word = EscapesIn(word);
      for (; word != 0; word &= word - 1) {
        const auto nibble = static_cast<std::size_t>(std::countr_zero(word)) / 4;
        const std::size_t place = begin + nibble / 2 + nibble % 2 * kHalf;
        if (!found(block * kPackBlockValues + place)) return false;
      }
    }
  }
  return true;
}

// Puts listed exponents where a group has escapes; false if it has more or fewer of them, or one
// beyond `count`.
bool PlaceEscapes(const std::uint8_t* codes, unsigned blocks, std::span<const std::uint8_t> list,
                  std::uint16_t* values, std::size_t count) {
  std::size_t next = 0;
  const bool fits = ForEscapes(codes, blocks, [&](std::size_t place) {
    if (next == list.size() || place >= count) return false;
    values[place] = static_cast<std::uint16_t>(values[place] | list[next++] << 7);
    return true;
  });
  return fits && next == list.size();
}

bool ReadHead(std::span<const std::uint8_t> packed, std::size_t values, Head& head) {
  if (packed.size() < sizeof(head)) return false;
  std::memcpy(&head, packed.data(), sizeof(head));
  return head.magic == kMagic && head.code_bits == kCodeBits && head.table_scope == 0 &&
         head.table_entries <= kPackTableEntries && head.values == values &&
         head.escapes <= values && packed.size() == Layout(values).Bytes(head.escapes);
}

}  // namespace

void PackPortable(const PackTable& table, const std::uint16_t* values, std::size_t groups,
                  std::uint8_t* area, std::uint16_t* escaped) {
  constexpr std::size_t kHalf = kPackBlockValues / 2;
  for (std::size_t group = 0; group < groups; ++group, area += kGroupBytes) {
    unsigned blocks = 0;
    for (std::size_t block = 0; block < kBlocksPerGroup; ++block, values += kPackBlockValues) {
      std::uint8_t* const codes = area + block * kHalf;
      std::uint8_t* const rest = area + kGroupCodeBytes + block * kPackBlockValues;
      for (std::size_t i = 0; i < kPackBlockValues; ++i) {
        rest[i] = static_cast<std::uint8_t>((values[i] >> 8 & 0x80) | (values[i] & 0x7F));
      }
      bool has_any = false;
      for (std::size_t i = 0; i < kHalf; ++i) {
        const std::uint8_t low = table.codes[Exponent(values[i])];
        const std::uint8_t high = table.codes[Exponent(values[i + kHalf])];
        has_any |= low == kEscape || high == kEscape;
        codes[i] = static_cast<std::uint8_t>(low | high << 4);
      }
      blocks |= has_any ? 1u << block : 0;
    }
    escaped[group] = static_cast<std::uint16_t>(blocks);
  }
}

void UnpackPortable(const PackTable& table, const std::uint8_t* area, std::size_t groups,
                    std::uint16_t* values, std::uint16_t* escaped) {
  for (std::size_t group = 0; group < groups; ++group, area += kGroupBytes) {
    const std::uint8_t* const rest = area + kGroupCodeBytes;
    unsigned blocks = 0;
    for (std::size_t i = 0; i < kPackGroupValues; ++i) {
      const std::uint8_t code = CodeAt(area, i);
      blocks |= code == kEscape ? 1u << i / kPackBlockValues : 0;
      *values++ = static_cast<std::uint16_t>(
          (rest[i] & 0x80) << 8 | unsigned{table.exponents[code]} << 7 | (rest[i] & 0x7F));
    }
    escaped[group] = static_cast<std::uint16_t>(blocks);
  }
}

namespace {

std::size_t Pack(const Kernels& kernels, std::span<const std::uint16_t> values,
                 std::span<std::uint8_t> out) {
  ExponentSample sample(values.size());
  sample.Add(values);
  PiecePacker packer(sample.MakeTable(), values.size(), out, &kernels);
  return packer.Add(values) ? packer.Finish() : 0;
}

bool Unpack(const Kernels& kernels, std::span<const std::uint8_t> packed,
            std::span<std::uint16_t> values) {
  PieceUnpacker unpacker(packed, values.size(), &kernels);
  return unpacker.Next(values) && unpacker.AtEnd();
}

constexpr Kernels kPortable{PackPortable, UnpackPortable};
#if defined(__x86_64__)
constexpr Kernels kAvx2{PackAvx2, UnpackAvx2};
constexpr Kernels kAvx512{PackAvx512, UnpackAvx512};
#endif

template <const Kernels& kKernels>
constexpr PackVariant Variant(const char* name) {
  return {name,
          [](std::span<const std::uint16_t> values, std::span<std::uint8_t> out) {
            return Pack(kKernels, values, out);
          },
          [](std::span<const std::uint8_t> packed, std::span<std::uint16_t> values) {
            return Unpack(kKernels, packed, values);
          }};
}

struct VariantList {
  std::array<PackVariant, 3> variants;
  std::size_t count = 0;
  const Kernels* best = nullptr;
};

VariantList FindVariants() {
  VariantList list;
  auto add = [&list](PackVariant variant, const Kernels& kernels) {
    list.variants[list.count++] = variant;
    list.best = &kernels;
  };
  add(Variant<kPortable>("portable"), kPortable);
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2")) add(Variant<kAvx2>("avx2"), kAvx2);
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vbmi")) {
    add(Variant<kAvx512>("avx512"), kAvx512);
  }
#endif
  return list;
}

const VariantList& Variants() {
  static const VariantList list = FindVariants();
  return list;
}

}  // namespace
}  // namespace packing

ExponentSample::ExponentSample(std::size_t values)
    // An odd stride: one that divides the size of a page would see the same places of every page.
    : values_(values), stride_(std::max<std::size_t>(1, values / packing::kSampleValues) | 1) {}

void ExponentSample::Add(std::span<const std::uint16_t> values) {
  for (; next_ < values.size(); next_ += stride_, ++sampled_) {
    ++counts_[packing::Exponent(values[next_])];
  }
  next_ -= values.size();
}

PackTable ExponentSample::MakeTable() const {
  std::array<std::uint8_t, 256> order;
  std::size_t used = 0;
  for (std::size_t exponent = 0; exponent < counts_.size(); ++exponent) {
    if (counts_[exponent] > 0) order[used++] = static_cast<std::uint8_t>(exponent);
  }
  std::stable_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(used),
                   [this](std::uint8_t a, std::uint8_t b) { return counts_[a] > counts_[b]; });
  PackTable table;
  table.codes.fill(packing::kEscape);
  const auto add = [&table](std::uint8_t exponent) {
    if (table.entries == kPackTableEntries || table.codes[exponent] != packing::kEscape) return;
    table.codes[exponent] = table.entries;
    table.exponents[table.entries++] = exponent;
  };
  for (std::size_t i = 0; i < used; ++i) add(order[i]);
  if (used == 0) return table;
  // Each is half as frequent as the one above it, so the next ones below are the likeliest.
  const std::uint8_t top = table.exponents[0];
  for (unsigned below = 1; below < kPackTableEntries && below <= top; ++below) {
    add(static_cast<std::uint8_t>(top - below));
  }
  return table;
}

std::size_t ExponentSample::EscapesWith(const PackTable& table) const {
  std::size_t escapes = 0;
  for (std::size_t exponent = 0; exponent < counts_.size(); ++exponent) {
    if (table.codes[exponent] == packing::kEscape) escapes += counts_[exponent];
  }
  return sampled_ == 0 ? 0 : escapes * values_ / sampled_;
}

PiecePacker::PiecePacker(const PackTable& table, std::size_t values, std::span<std::uint8_t> out,
                         const packing::Kernels* kernels)
    : kernels_(kernels != nullptr ? *kernels : *packing::Variants().best),
      table_(table),
      out_(out),
      values_(values),
      ok_(values <= std::numeric_limits<std::uint32_t>::max() &&
          out.size() >= packing::Layout(values).Bytes(0)) {
  if (!ok_) return;
  std::memset(out.data(), 0, packing::Layout(values).groups);
}

bool PiecePacker::Add(std::span<const std::uint16_t> values) {
  const std::size_t end = taken_ + values.size();
  ok_ = ok_ && (end == values_ || (end < values_ && values.size() % kPackGroupValues == 0));
  while (ok_ && values.size() >= kPackGroupValues) {
    const std::size_t groups = std::min(packing::kBatchGroups, values.size() / kPackGroupValues);
    ok_ = AddGroups(values.data(), groups);
    values = values.subspan(groups * kPackGroupValues);
  }
  if (ok_ && !values.empty()) {  // filled up with numbers that are no escapes
    std::array<std::uint16_t, kPackGroupValues> last;
    last.fill(static_cast<std::uint16_t>(table_.exponents[0] << 7));
    std::copy_n(values.begin(), values.size(), last.begin());
    ok_ = AddGroups(last.data(), 1);
  }
  taken_ = end;
  return ok_;
}

bool PiecePacker::AddGroups(const std::uint16_t* values, std::size_t groups) {
  const packing::Layout layout(values_);
  const std::size_t first = taken_ / kPackGroupValues;
  std::uint8_t* const area = out_.data() + layout.groups + first * packing::kGroupBytes;
  std::uint8_t* const index = out_.data() + sizeof(packing::Head);
  const auto list = out_.subspan(layout.escapes);
  std::array<std::uint16_t, packing::kBatchGroups> escaped;
  kernels_.pack(table_, values, groups, area, escaped.data());
  for (std::size_t group = 0; group < groups; ++group, values += kPackGroupValues) {
    const auto found = [&](std::size_t place) {
      if (escapes_ == list.size()) return false;
      list[escapes_++] = packing::Exponent(values[place]);
      return true;
    };
    if (!packing::ForEscapes(area + group * packing::kGroupBytes, escaped[group], found)) {
      return false;
    }
    const auto so_far = static_cast<std::uint32_t>(escapes_);
    std::memcpy(index + (first + group + 1) * sizeof(so_far), &so_far, sizeof(so_far));
  }
  taken_ += groups * kPackGroupValues;
  return true;
}

std::size_t PiecePacker::Finish() {
  const packing::Layout layout(values_);
  if (!ok_ || taken_ != values_ || layout.Bytes(escapes_) > out_.size()) return 0;
  const std::size_t bytes = layout.Bytes(escapes_);
  std::memset(out_.data() + layout.escapes + escapes_, 0, bytes - layout.escapes - escapes_);
  packing::Head head{};
  head.magic = packing::kMagic;
  head.code_bits = packing::kCodeBits;
  head.table_entries = table_.entries;
  head.values = static_cast<std::uint32_t>(values_);
  head.escapes = static_cast<std::uint32_t>(escapes_);
  std::copy_n(table_.exponents.begin(), table_.entries, head.exponents.begin());
  std::memcpy(out_.data(), &head, sizeof(head));
  return bytes;
}

PieceUnpacker::PieceUnpacker(std::span<const std::uint8_t> packed, std::size_t values,
                             const packing::Kernels* kernels)
    : kernels_(kernels != nullptr ? *kernels : *packing::Variants().best),
      packed_(packed),
      values_(values) {
  packing::Head head;
  ok_ = packing::ReadHead(packed, values, head);
  if (!ok_) return;
  list_ = packed.subspan(packing::Layout(values).escapes, head.escapes);
  std::copy_n(head.exponents.begin(), head.table_entries, table_.exponents.begin());
}

bool PieceUnpacker::Next(std::span<std::uint16_t> values) {
  const std::size_t end = taken_ + values.size();
  ok_ = ok_ && (end == values_ || (end < values_ && values.size() % kPackGroupValues == 0));
  while (ok_ && !values.empty()) {
    const std::size_t batch = packing::kBatchGroups * kPackGroupValues;
    std::size_t count = std::min(batch, values.size());
    if (count < kPackGroupValues) {  // the piece's last group
      std::array<std::uint16_t, kPackGroupValues> last;
      ok_ = NextGroups(std::span(last).first(count));
      std::copy_n(last.begin(), count, values.begin());
    } else {
      count -= count % kPackGroupValues;
      ok_ = NextGroups(values.first(count));
    }
    values = values.subspan(count);
  }
  taken_ = end;
  return ok_;
}

// Whole groups; or one, of which so many numbers count and all have room.
bool PieceUnpacker::NextGroups(std::span<std::uint16_t> values) {
  const packing::Layout layout(values_);
  const std::size_t first = taken_ / kPackGroupValues;
  const std::size_t groups = packing::Groups(values.size());
  const std::uint8_t* const area = packed_.data() + layout.groups + first * packing::kGroupBytes;
  std::array<std::uint16_t, packing::kBatchGroups> escaped;
  kernels_.unpack(table_, area, groups, values.data(), escaped.data());
  for (std::size_t group = 0; group < groups; ++group) {
    std::uint32_t after;
    const std::size_t entry = (first + group + 1) * sizeof(after);
    std::memcpy(&after, packed_.data() + sizeof(packing::Head) + entry, sizeof(after));
    if (after < escapes_ || after > list_.size()) return false;
    const std::size_t begin = group * kPackGroupValues;
    const auto listed = list_.subspan(escapes_, after - escapes_);
    if ((escaped[group] != 0 || !listed.empty()) &&
        !packing::PlaceEscapes(area + group * packing::kGroupBytes, escaped[group], listed,
                               values.data() + begin,
                               std::min(kPackGroupValues, values.size() - begin))) {
      return false;
    }
    escapes_ = after;
  }
  taken_ += values.size();
  return true;
}

std::size_t PackedBytesMax(std::size_t values, std::size_t escapes) {
  return packing::Layout(values).Bytes(escapes);
}

std::span<const PackVariant> PackVariants() {
  const auto& list = packing::Variants();
  return {list.variants.data(), list.count};
}

std::size_t PackBf16(std::span<const std::uint16_t> values, std::span<std::uint8_t> out) {
  return PackVariants().back().pack(values, out);
}

bool UnpackBf16(std::span<const std::uint8_t> packed, std::span<std::uint16_t> values) {
  return PackVariants().back().unpack(packed, values);
}

}  // namespace kvshelf
