#include "kvshelf/bf16_pack.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <numeric>

#include "bf16_pack_parts.h"

namespace kvshelf {
namespace packing {
namespace {

constexpr std::size_t kSampleValues = 4096;

constexpr std::size_t Aligned(std::size_t bytes) {
  return (bytes + kPackAlignment - 1) / kPackAlignment * kPackAlignment;
}

constexpr std::size_t Groups(std::size_t values) {
  return (values + kPackGroupValues - 1) / kPackGroupValues;
}

constexpr std::uint8_t Exponent(std::uint16_t value) {
  return static_cast<std::uint8_t>(value >> 7);
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

// The most frequent exponents of a sample, rarest last. `escapes`: how many the sample lets expect.
Table MakeTable(std::span<const std::uint16_t> values, Head& head, std::size_t& escapes) {
  // An odd stride: one that divides the size of a page would see the same places of every page.
  const std::size_t stride = std::max<std::size_t>(1, values.size() / kSampleValues) | 1;
  std::array<std::uint32_t, 256> counts{};
  std::size_t sampled = 0;
  for (std::size_t i = 0; i < values.size(); i += stride, ++sampled) ++counts[Exponent(values[i])];
  std::array<std::uint8_t, 256> order;
  std::size_t used = 0;
  for (std::size_t exponent = 0; exponent < counts.size(); ++exponent) {
    if (counts[exponent] > 0) order[used++] = static_cast<std::uint8_t>(exponent);
  }
  std::stable_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(used),
                   [&counts](std::uint8_t a, std::uint8_t b) { return counts[a] > counts[b]; });
  Table table;
  table.codes.fill(kEscape);
  head.table_entries = 0;
  std::size_t covered = 0;
  for (std::size_t code = 0; code < std::min(kPackTableEntries, used); ++code) {
    table.exponents[code] = head.exponents[code] = order[code];
    table.codes[order[code]] = static_cast<std::uint8_t>(code);
    covered += counts[order[code]];
    ++head.table_entries;
  }
  escapes = sampled == 0 ? 0 : (sampled - covered) * values.size() / sampled;
  return table;
}

std::uint8_t CodeAt(const std::uint8_t* codes, std::size_t value) {
  const std::size_t in_block = value % kPackBlockValues;
  const std::size_t half = kPackBlockValues / 2;
  const std::uint8_t both = codes[value / kPackBlockValues * half + in_block % half];
  return in_block < half ? both & 15 : both >> 4;
}

// Calls `found` with the place of each escape of a group, in the order of the list: by bytes of
// codes, the lower half of a byte first. Ends early if it says false.
template <typename Found>
bool ForEscapes(const std::uint8_t* codes, Found found) {
  constexpr std::size_t kHalf = kPackBlockValues / 2;
  for (std::size_t begin = 0; begin < kGroupCodeBytes; begin += 8) {
    std::uint64_t word;
    std::memcpy(&word, codes + begin, sizeof(word));
    word &= word >> 1;
    word &= word >> 2;
    word &= 0x1111111111111111;  // of each half byte the lowest bit, if all four were set
    for (; word != 0; word &= word - 1) {
      const auto nibble = static_cast<std::size_t>(std::countr_zero(word)) / 4;
      const std::size_t byte = begin + nibble / 2;
      if (!found(byte / kHalf * kPackBlockValues + nibble % 2 * kHalf + byte % kHalf)) return false;
    }
  }
  return true;
}

// Puts listed exponents where a group has escapes; false if it has more or fewer of them, or one
// beyond `count`.
bool PlaceEscapes(const std::uint8_t* codes, std::span<const std::uint8_t> list,
                  std::uint16_t* values, std::size_t count) {
  std::size_t next = 0;
  const bool fits = ForEscapes(codes, [&](std::size_t place) {
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

std::size_t Pack(PackGroup pack, bool trusts_sample, std::span<const std::uint16_t> values,
                 std::span<std::uint8_t> out) {
  const Layout layout(values.size());
  if (values.size() > std::numeric_limits<std::uint32_t>::max() || out.size() < layout.Bytes(0)) {
    return 0;
  }
  Head head{};
  std::size_t escapes = 0;
  const Table table = MakeTable(values, head, escapes);
  const std::size_t room = out.size() - layout.escapes;
  if (trusts_sample && escapes > room) return 0;
  escapes = 0;
  std::uint8_t* const index = out.data() + sizeof(head);
  std::uint8_t* const list = out.data() + layout.escapes;
  std::memset(index, 0, layout.groups - sizeof(head));
  std::array<std::uint16_t, kPackGroupValues> last;
  for (std::size_t group = 0; group < Groups(values.size()); ++group) {
    const std::uint16_t* from = values.data() + group * kPackGroupValues;
    const std::size_t count = std::min(kPackGroupValues, values.size() - group * kPackGroupValues);
    if (count < kPackGroupValues) {
      // Filled up with numbers that are no escapes.
      last.fill(static_cast<std::uint16_t>(table.exponents[0] << 7));
      std::copy_n(from, count, last.begin());
      from = last.data();
    }
    std::uint8_t* const codes = out.data() + layout.groups + group * kGroupBytes;
    pack(table, from, codes, codes + kGroupCodeBytes);
    const bool fits = ForEscapes(codes, [&](std::size_t place) {
      if (escapes == room) return false;
      list[escapes++] = Exponent(from[place]);
      return true;
    });
    if (!fits) return 0;
    const auto so_far = static_cast<std::uint32_t>(escapes);
    std::memcpy(index + (group + 1) * sizeof(so_far), &so_far, sizeof(so_far));
  }
  const std::size_t bytes = layout.Bytes(escapes);
  if (bytes > out.size()) return 0;
  std::memset(list + escapes, 0, bytes - layout.escapes - escapes);
  head.magic = kMagic;
  head.code_bits = kCodeBits;
  head.values = static_cast<std::uint32_t>(values.size());
  head.escapes = static_cast<std::uint32_t>(escapes);
  std::memcpy(out.data(), &head, sizeof(head));
  return bytes;
}

bool UnpackGroups(UnpackGroup unpack, std::span<const std::uint8_t> packed, std::size_t all_values,
                  std::size_t first, std::span<std::uint16_t> values, std::uint32_t& escapes) {
  Head head;
  if (!ReadHead(packed, all_values, head)) return false;
  const Layout layout(all_values);
  Table table;
  std::copy_n(head.exponents.begin(), head.table_entries, table.exponents.begin());
  const auto list = packed.subspan(layout.escapes, head.escapes);
  std::array<std::uint16_t, kPackGroupValues> last;
  for (std::size_t done = 0; done < values.size(); done += kPackGroupValues) {
    const std::size_t group = first + done / kPackGroupValues;
    std::uint32_t after;
    std::memcpy(&after, packed.data() + sizeof(head) + (group + 1) * sizeof(after), sizeof(after));
    if (after < escapes || after > list.size()) return false;
    const std::uint8_t* const codes = packed.data() + layout.groups + group * kGroupBytes;
    std::uint16_t* to = values.data() + done;
    const std::size_t count = std::min(kPackGroupValues, values.size() - done);
    const bool is_whole = count == kPackGroupValues;
    unpack(table, codes, codes + kGroupCodeBytes, is_whole ? to : last.data());
    if (!is_whole) std::copy_n(last.begin(), count, to);
    if (after != escapes &&
        !PlaceEscapes(codes, list.subspan(escapes, after - escapes), to, count)) {
      return false;
    }
    escapes = after;
  }
  return true;
}

bool Unpack(UnpackGroup unpack, std::span<const std::uint8_t> packed,
            std::span<std::uint16_t> values) {
  std::uint32_t escapes = 0;
  if (!UnpackGroups(unpack, packed, values.size(), 0, values, escapes)) return false;
  Head head;
  return ReadHead(packed, values.size(), head) && escapes == head.escapes;
}

void PackGroupPortable(const Table& table, const std::uint16_t* values, std::uint8_t* codes,
                       std::uint8_t* rest) {
  constexpr std::size_t kHalf = kPackBlockValues / 2;
  for (std::size_t block = 0; block < kBlocksPerGroup; ++block) {
    const std::uint16_t* from = values + block * kPackBlockValues;
    for (std::size_t i = 0; i < kPackBlockValues; ++i) {
      rest[block * kPackBlockValues + i] =
          static_cast<std::uint8_t>((from[i] >> 8 & 0x80) | (from[i] & 0x7F));
    }
    for (std::size_t i = 0; i < kHalf; ++i) {
      codes[block * kHalf + i] = static_cast<std::uint8_t>(
          table.codes[Exponent(from[i])] | table.codes[Exponent(from[i + kHalf])] << 4);
    }
  }
}

void UnpackGroupPortable(const Table& table, const std::uint8_t* codes, const std::uint8_t* rest,
                         std::uint16_t* values) {
  for (std::size_t i = 0; i < kPackGroupValues; ++i) {
    const unsigned exponent = table.exponents[CodeAt(codes, i)];
    values[i] =
        static_cast<std::uint16_t>((rest[i] & 0x80) << 8 | exponent << 7 | (rest[i] & 0x7F));
  }
}

namespace {

template <PackGroup kGroup, bool kTrustsSample>
std::size_t PackBy(std::span<const std::uint16_t> values, std::span<std::uint8_t> out) {
  return Pack(kGroup, kTrustsSample, values, out);
}

template <UnpackGroup kGroup>
bool UnpackBy(std::span<const std::uint8_t> packed, std::span<std::uint16_t> values) {
  return Unpack(kGroup, packed, values);
}

template <UnpackGroup kGroup>
bool UnpackGroupsBy(std::span<const std::uint8_t> packed, std::size_t all_values, std::size_t first,
                    std::span<std::uint16_t> values, std::uint32_t& escapes) {
  return UnpackGroups(kGroup, packed, all_values, first, values, escapes);
}

template <PackGroup kPack, UnpackGroup kUnpack>
constexpr PackVariant Variant(const char* name) {
  return {name, PackBy<kPack, false>, PackBy<kPack, true>, UnpackBy<kUnpack>,
          UnpackGroupsBy<kUnpack>};
}

struct VariantList {
  std::array<PackVariant, 3> variants;
  std::size_t count = 0;
};

VariantList FindVariants() {
  VariantList list;
  auto add = [&list](PackVariant variant) { list.variants[list.count++] = variant; };
  add(Variant<PackGroupPortable, UnpackGroupPortable>("portable"));
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2")) {
    add(Variant<PackGroupAvx2, UnpackGroupAvx2>("avx2"));
  }
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vbmi")) {
    add(Variant<PackGroupAvx512, UnpackGroupAvx512>("avx512"));
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

std::size_t PackedBytesMax(std::size_t values, std::size_t escapes) {
  return packing::Layout(values).Bytes(escapes);
}

std::span<const PackVariant> PackVariants() {
  const auto& list = packing::Variants();
  return {list.variants.data(), list.count};
}

std::size_t PackBf16(std::span<const std::uint16_t> values, std::span<std::uint8_t> out) {
  return PackVariants().back().try_pack(values, out);
}

bool UnpackBf16(std::span<const std::uint8_t> packed, std::span<std::uint16_t> values) {
  return PackVariants().back().unpack(packed, values);
}

PieceUnpacker::PieceUnpacker(std::span<const std::uint8_t> packed, std::size_t values)
    : packed_(packed), values_(values) {
  packing::Head head;
  ok_ = packing::ReadHead(packed, values, head);
  if (ok_) escapes_end_ = head.escapes;
}

bool PieceUnpacker::Next(std::span<std::uint16_t> values) {
  const std::size_t end = taken_ + values.size();
  const bool fits = end == values_ || (end < values_ && values.size() % kPackGroupValues == 0);
  ok_ = ok_ && fits &&
        PackVariants().back().unpack_groups(packed_, values_, taken_ / kPackGroupValues, values,
                                            escapes_);
  taken_ = end;
  return ok_;
}

}  // namespace kvshelf
