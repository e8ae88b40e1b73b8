// The header's decoder against a slow second one, with 8 bytes of file size before the page.
#include "oracle.h"

namespace kvshelf::fuzz {
namespace {

// Sizes that follow from others, made right: mutations of them would hardly ever agree.
void RepairSizes(std::string& page, std::uint64_t* file_bytes) {
  const std::uint64_t payload = FieldAt<std::uint64_t>(page, 40) * FieldAt<std::uint32_t>(page, 52);
  const std::uint64_t piece = FieldAt<std::uint32_t>(page, 32);
  const auto pieces = static_cast<std::uint32_t>(piece == 0 ? 0 : (payload + piece - 1) / piece);
  std::memcpy(page.data() + 24, &payload, sizeof(payload));
  std::memcpy(page.data() + 36, &pieces, sizeof(pieces));
  *file_bytes = kPageBytes + RoundUpToPage(payload);
  if (!IsPackedFile(page) || pieces > kPackedPieceCountMax || piece > kPackedPieceBytesMax) return;
  *file_bytes = kPageBytes;
  for (std::size_t i = 0; i < pieces; ++i) {
    const auto plain = static_cast<std::uint32_t>(PlainAt(page, i));
    auto stored = FieldAt<std::uint32_t>(page, 2560 + 4 * i);
    if (stored == 0 || stored > plain) stored = plain;
    std::memcpy(page.data() + 2560 + 4 * i, &stored, sizeof(stored));
    *file_bytes += RoundUpToPage(stored);
  }
}

// Most pages are sealed anew, or no mutation would get past the checksum.
std::string PageOf(Input& input, std::uint8_t flags, std::uint64_t* file_bytes) {
  std::string page(input.rest().substr(0, kPageBytes));
  page.resize(kPageBytes);
  if ((flags & 8) != 0) RepairSizes(page, file_bytes);
  if ((flags & 1) != 0) {
    const std::uint64_t crc = HeaderCrc(page);
    std::memcpy(page.data() + 16, &crc, sizeof(crc));
  }
  return page;
}

void CheckAgainstTheOracle(const std::string& page, std::uint64_t file_bytes, std::uint8_t flags) {
  ChunkHeader header;
  std::memcpy(&header, page.data(), sizeof(header));
  Wanted wanted{
      header.namespace_digest, "", header.rank, header.geometry, header.block_bytes, 0, 0};
  wanted.key = page.substr(104, header.key_bytes <= 128 ? header.key_bytes : 128);
  if ((flags & 2) != 0) wanted.key += 'x';
  if ((flags & 4) != 0) ++wanted.rank;
  const ChunkIdentity identity{wanted.namespace_digest, wanted.key, wanted.rank, wanted.geometry,
                               wanted.block_bytes};
  DEMAND(HeaderIsSound(header) == Sound(page));
  DEMAND(HeaderIsKnown(header) == Known(page));
  DEMAND(HeaderMatches(header, identity) == Expected(page, wanted));
  DEMAND(SizesAgree(header, file_bytes) == Agrees(page, file_bytes));
  if (!SizesAgree(header, file_bytes)) return;
  DEMAND(FileBytes(header) == file_bytes);
  DEMAND(header.piece_count <= kPieceCountMax);
  const std::uint32_t first = header.first_block, count = header.block_count;
  DEMAND(HasBlocks(header, first, count) && HasBlocks(header, first + count - 1, 1));
  DEMAND(!HasBlocks(header, first, count + 1) && !HasBlocks(header, first + 1, count));
  DEMAND(!HasBlocks(header, 0xFFFFFFFF, 0xFFFFFFFF));
}

// The same payload with packed pieces.
void CheckThePacker(Input& input, const ChunkHeader& plain, std::uint32_t setting) {
  const std::uint32_t piece =
      PackedPieceBytesFor(plain.block_bytes, plain.payload_bytes, setting, false);
  if (piece == 0) return;
  DEMAND(piece % kPageBytes == 0 && piece <= setting && piece <= kPackedPieceBytesMax);
  ChunkHeader header = plain;
  header.piece_bytes = piece;
  header.piece_count = static_cast<std::uint32_t>((plain.payload_bytes + piece - 1) / piece);
  DEMAND(header.piece_count <= kPackedPieceCountMax);
  std::vector<std::uint32_t> stored;
  std::uint64_t bytes = kPageBytes;
  for (std::size_t i = 0; i < header.piece_count; ++i) {
    const std::uint64_t most = PlainBytes(header, i);
    stored.push_back(static_cast<std::uint32_t>(1 + input.Take<std::uint32_t>() % most));
    bytes += RoundUpToPage(stored.back());
  }
  SetStoredBytes(header, stored);
  DEMAND(SizesAgree(header, bytes) && !SizesAgree(header, bytes + kPageBytes));
  DEMAND(FileBytes(header) == bytes && StoredBytes(header, 0) == stored[0]);
  stored.back() = static_cast<std::uint32_t>(PlainBytes(header, header.piece_count - 1)) + 1;
  SetStoredBytes(header, stored);
  DEMAND(!SizesAgree(header, FileBytes(header)));
}

// What a writer makes of any sizes that the engine lets through, a reader takes.
void CheckTheWriter(Input& input) {
  const std::uint64_t block_bytes = 1 + input.Take<std::uint64_t>() % (1ull << 40);
  const std::uint32_t first = input.Take<std::uint32_t>() >> 1;
  const std::uint32_t setting = (1 + input.Take<std::uint32_t>() % (1u << 19)) * 4096;
  const std::uint32_t piece = PieceBytesFor(block_bytes, setting);
  DEMAND(piece > 0 && piece % kPageBytes == 0 && piece <= setting);
  const std::uint64_t count_max = kPieceCountMax * std::uint64_t{piece} / block_bytes;
  if (count_max == 0) return;
  const auto count = static_cast<std::uint32_t>(
      1 + input.Take<std::uint32_t>() % (count_max < (1u << 30) ? count_max : (1u << 30)));
  const std::string key = "a key of some bytes";
  const ChunkIdentity identity{{}, key, 7, 8, block_bytes};
  ChunkHeader header = MakeHeader(identity, first, count, piece);
  PieceCoder coder(nullptr, {});
  DEMAND(SealHeader(header, coder));
  DEMAND(HeaderIsSound(header) && HeaderMatches(header, identity));
  DEMAND(SizesAgree(header, FileBytes(header)) && HasBlocks(header, first, count));
  DEMAND(!SizesAgree(header, FileBytes(header) + 1) && !SizesAgree(header, FileBytes(header) - 1));
  CheckThePacker(input, header, setting);
  const std::uint64_t payload = header.payload_bytes, begin = payload / 3;
  const std::uint64_t end = AlignedEnd(begin, setting, payload);
  DEMAND(end > begin && end <= payload && end - begin <= setting);
}

}  // namespace

std::vector<std::string> Seeds(const std::vector<std::string>& vectors) {
  std::vector<std::string> seeds;
  for (const std::string& file : vectors) {
    const std::uint64_t size = file.size();
    for (const char flags : {'\1', '\11'}) {
      std::string seed(1, flags);
      seed.append(reinterpret_cast<const char*>(&size), sizeof(size));
      seeds.push_back(seed + file.substr(0, kPageBytes));
    }
  }
  return seeds;
}

}  // namespace kvshelf::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes) {
  using namespace kvshelf::fuzz;
  Input input(data, bytes);
  const auto flags = input.Take<std::uint8_t>();
  auto file_bytes = input.Take<std::uint64_t>();
  const std::string page = PageOf(input, flags, &file_bytes);
  CheckAgainstTheOracle(page, file_bytes, flags);
  CheckTheWriter(input);
  return 0;
}
