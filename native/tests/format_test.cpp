#include "kvshelf/format.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>

#include "check.h"
#include "kvshelf/crc64.h"

namespace kvshelf {
namespace {

const std::string kKey = "a key of 20 bytes...";

ChunkIdentity Identity() {
  NamespaceDigest digest{};
  digest.fill(7);
  return {digest, kKey, 3, 0x1122334455667788, 10000};
}

ChunkHeader Header() {
  ChunkHeader header = MakeHeader(Identity(), 2, 5, 8192);
  header.piece_codes[0] = 99;
  PieceCoder coder(nullptr, {});
  SealHeader(header, coder);
  return header;
}

void FieldsLieWhereThePageSays() {
  const ChunkHeader header = Header();
  const auto* bytes = reinterpret_cast<const unsigned char*>(&header);
  CHECK(std::memcmp(bytes, "KVSHELF\n", 8) == 0);
  CHECK(bytes[8] == 1 && bytes[12] == 0 && bytes[13] == 0x10);
  CHECK(bytes[24] == 50000 % 256 && bytes[25] == 50000 / 256);
  CHECK(bytes[36] == 7);  // ceil(50000 / 8192)
  CHECK(bytes[48] == 2 && bytes[52] == 5 && bytes[56] == 0x88 && bytes[63] == 0x11);
  CHECK(bytes[64] == 7 && bytes[96] == kKey.size() && bytes[100] == 3 && bytes[104] == 'a');
  CHECK(bytes[98] == 0 && bytes[512] == 99);
  CHECK(FileBytes(header) == 4096 + 53248);
}

void EveryFlippedBitOfAHeaderIsFound() {
  ChunkHeader header = Header();
  auto* bytes = reinterpret_cast<unsigned char*>(&header);
  CHECK(HeaderIsSound(header));
  for (std::size_t bit = 0; bit < 8 * sizeof(header); ++bit) {
    bytes[bit / 8] ^= static_cast<unsigned char>(1 << (bit % 8));
    CHECK(!HeaderIsSound(header));
    bytes[bit / 8] ^= static_cast<unsigned char>(1 << (bit % 8));
  }
}

void AnyOtherIdentityIsForeign() {
  const ChunkHeader header = Header();
  CHECK(HeaderMatches(header, Identity()));
  auto other = [&](auto&& change) {
    ChunkIdentity identity = Identity();
    change(identity);
    CHECK(!HeaderMatches(header, identity));
  };
  const std::string longer = kKey + std::string(1, '\0');
  other([](ChunkIdentity& i) { i.namespace_digest[31] = 0; });
  other([&](ChunkIdentity& i) { i.key = longer; });
  other([&](ChunkIdentity& i) { i.key = std::string_view(kKey).substr(1); });
  other([](ChunkIdentity& i) { i.rank = 4; });
  other([](ChunkIdentity& i) { ++i.geometry; });
  other([](ChunkIdentity& i) { ++i.block_bytes; });
  ChunkHeader newer = header;
  newer.version = 2;
  CHECK(!HeaderMatches(newer, Identity()));
}

void SizesMustAgreeAndMayNotOverflow() {
  const ChunkHeader sound = Header();
  const std::uint64_t file_bytes = FileBytes(sound);
  CHECK(SizesAgree(sound, file_bytes));
  CHECK(!SizesAgree(sound, file_bytes - 1));
  CHECK(!SizesAgree(sound, file_bytes + 4096));
  auto refused = [&](auto&& change) {
    ChunkHeader header = sound;
    change(header);
    CHECK(!SizesAgree(header, file_bytes));
  };
  refused([](ChunkHeader& h) { h.payload_bytes += 1; });
  refused([](ChunkHeader& h) { h.piece_count = 6; });
  refused([](ChunkHeader& h) { h.piece_count = 449; });
  refused([](ChunkHeader& h) { h.piece_bytes = 0; });
  refused([](ChunkHeader& h) { h.piece_bytes = 8193; });
  refused([](ChunkHeader& h) { h.block_count = 0; });
  refused([](ChunkHeader& h) { h.block_bytes = 0; });
  refused([](ChunkHeader& h) { h.first_block = std::numeric_limits<std::uint32_t>::max(); });
  refused([](ChunkHeader& h) {
    // (2^63 + 25000) x 2 wraps around to the 50000 bytes that the file has.
    h.block_bytes = (std::uint64_t{1} << 63) + 25000;
    h.block_count = 2;
  });
}

void BlocksAreFoundWhereTheyAre() {
  const ChunkHeader header = Header();  // blocks 2 to 6
  CHECK(HasBlocks(header, 2, 5) && HasBlocks(header, 6, 1));
  CHECK(!HasBlocks(header, 1, 1) && !HasBlocks(header, 7, 1) && !HasBlocks(header, 2, 6));
  CHECK(!HasBlocks(header, 3, std::numeric_limits<std::uint32_t>::max()));
}

// The Python tests read vectors.json and judge each file in full; here the codec alone is shown
// that files which are named sound are.
void VectorsThatShouldBeSoundAre() {
  const std::filesystem::path folder = KVSHELF_VECTORS;
  if (!std::filesystem::exists(folder)) return;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() != ".chunk") continue;
    if (entry.path().stem().string().rfind("ok", 0) != 0) continue;
    std::ifstream file(entry.path(), std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(file), {}};
    ChunkHeader header;
    CHECK(bytes.size() >= sizeof(header));
    std::memcpy(&header, bytes.data(), sizeof(header));
    CHECK(HeaderIsSound(header) && SizesAgree(header, bytes.size()));
    for (std::uint64_t i = 0; i < header.piece_count; ++i) {
      const std::uint64_t begin = i * header.piece_bytes;
      const std::uint64_t bytes_left = header.payload_bytes - begin;
      const std::uint64_t length =
          bytes_left < header.piece_bytes ? bytes_left : header.piece_bytes;
      CHECK(Crc64(0, bytes.data() + kPageBytes + begin, length) == header.piece_codes[i]);
    }
  }
}

}  // namespace
}  // namespace kvshelf

int main() {
  return kvshelf::testing::RunTests({
      {"fields lie where the page says", kvshelf::FieldsLieWhereThePageSays},
      {"every flipped bit of a header is found", kvshelf::EveryFlippedBitOfAHeaderIsFound},
      {"any other identity is foreign", kvshelf::AnyOtherIdentityIsForeign},
      {"sizes must agree and may not overflow", kvshelf::SizesMustAgreeAndMayNotOverflow},
      {"blocks are found where they are", kvshelf::BlocksAreFoundWhereTheyAre},
      {"vectors that should be sound are", kvshelf::VectorsThatShouldBeSoundAre},
  });
}
