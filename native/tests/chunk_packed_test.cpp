// Chunk files whose pieces are packed: stored and loaded, damaged, and of later versions.
#include <cerrno>
#include <functional>
#include <numeric>
#include <random>

#include "check.h"
#include "chunk_fixture.h"
#include "far_device.h"
#include "kvshelf/bf16_pack.h"
#include "kvshelf/chunk_verifier.h"

namespace kvshelf {
namespace {

using testing::Blocks;
using testing::Call;
using testing::Fail;
using testing::kPath;

constexpr std::uint32_t kPieceBytes = 64 << 10;
const std::string kSecret(32, 's');

// Of 12 blocks and 144,000 bytes: two pieces that are packed and a short one that is not.
struct Fixture : testing::ChunkFixture {
  AuthKey secret{kSecret};

  Fixture() {
    blocks.FillNumbers(1);
    ids = {4, 5, 9, 1, 0, 17, 3, 2, 19, 8, 7, 6};
    request.block_ids = ids;
    options.compress = true;
    options.piece_bytes = kPieceBytes;
  }
  std::string StoredFile() {
    CHECK(Store().ok());
    return dir.Read(kPath);
  }
};

template <typename Number>
Number NumberAt(const std::string& file, std::size_t offset) {
  Number value;
  std::memcpy(&value, file.data() + offset, sizeof(value));
  return value;
}

template <typename Number>
void SetNumber(std::string& file, std::size_t offset, Number value) {
  std::memcpy(file.data() + offset, &value, sizeof(value));
}

// Makes checksums right, as whoever writes such a file on purpose does: first of `piece`.
void Seal(std::string& file, int piece = -1) {
  ChunkHeader header;
  std::memcpy(&header, file.data(), sizeof(header));
  std::uint64_t offset = kPageBytes;
  for (int i = 0; i <= piece; ++i) {
    const std::uint64_t stored = StoredBytes(header, static_cast<std::size_t>(i));
    PieceCoder coder(nullptr, {});
    coder.Begin(static_cast<std::uint32_t>(i));
    coder.Update(file.data() + offset, stored);
    Tag code;
    CHECK(coder.End(&code));
    if (i == piece) SetPieceCode(header, static_cast<std::size_t>(i), code);
    offset += RoundUpToPage(stored);
  }
  PieceCoder coder(nullptr, {});
  CHECK(SealHeader(header, coder));
  std::memcpy(file.data(), &header, sizeof(header));
}

void WhatWasPackedIsLoaded() {
  for (const bool keyed : {false, true}) {
    for (const bool direct : {false, true}) {
      for (const std::size_t transfer : {0, 777}) {
        if (direct && transfer != 0) continue;
        Fixture f;
        if (keyed) f.identity.auth_key = &f.secret;
        f.options.direct = direct && f.root.ProbeDirect() >= 0;
        f.ops->SetTransferMax(transfer);
        const std::string file = f.StoredFile();
        CHECK(NumberAt<std::uint32_t>(file, 8) == 2 && NumberAt<std::uint32_t>(file, 280) == 1);
        CHECK(file.size() < 4096 + 144'000 && file.size() % kPageBytes == 0);
        const std::string payload = f.Payload();
        f.blocks.Fill(0);
        CHECK(f.Load() == FileStatus::kOk && f.Payload() == payload);
      }
    }
  }
}

void PartsOfPackedChunksAreLoaded() {
  static testing::FarDevice slow;
  for (const bool ahead : {false, true}) {
    for (const bool verify : {false, true}) {
      Fixture f;
      f.StoredFile();
      f.options.verify = verify;
      f.options.compress = false;  // whoever does not pack reads what others packed
      for (const std::uint64_t ring : {8192, 1 << 20}) {
        auto context = MakeThreadContext(ahead ? slow : *f.device, 8192, ring);
        for (std::uint32_t first = 0; first < 12; ++first) {
          for (std::uint32_t count = 1; first + count <= 12; ++count) {
            Blocks other(3, 3000, 20);
            const GroupMemory memory = other.Describe();
            std::vector<std::int32_t> ids(count);
            std::iota(ids.begin(), ids.end(), 5);
            const ChunkRequest request{kPath, f.request.key, &memory, first, ids};
            CopyGate gate;
            bool removed = false;
            ChunkReader reader(f.root, f.options, f.identity, request, *context);
            CHECK(reader.Load(gate, &removed).ok() && !removed);
            for (std::uint32_t i = 0; i < count; ++i) {
              CHECK(other.Block(5 + i) ==
                    f.blocks.Block(static_cast<std::size_t>(f.ids[first + i])));
            }
          }
        }
      }
    }
  }
}

void WhatDoesNotShrinkIsAFileOfTheFirstVersion() {
  Fixture plain;
  plain.blocks.FillRandom(1);
  plain.options.compress = false;
  Fixture f;
  f.blocks.FillRandom(1);
  CHECK(f.StoredFile() == plain.StoredFile());
  // Larger than a header's pieces can say.
  ChunkIoOptions options;
  options.compress = true;
  const ChunkIdentity identity{{}, "key", 0, 1, 1 << 20};
  CHECK(ShapeOf(options, identity, 32 << 20).piece_bytes == 1 << 20);
  CHECK(ShapeOf(options, identity, 1 << 30).piece_bytes == 4 << 20);
  CHECK(ShapeOf(options, identity, 2ull << 30).packs == false);
  CHECK(ShapeOf(options, identity, 2ull << 30).piece_bytes == 4 << 20);
}

void APieceThatDoesNotShrinkLiesBesidePackedOnes() {
  Fixture f;
  for (const std::int32_t id : {4, 5, 9}) {  // the first piece ends in the sixth block
    for (std::size_t layer = 0; layer < 3; ++layer) {
      const Pages pages = f.blocks.PagesOf(layer);
      std::mt19937_64 random(static_cast<std::uint64_t>(id));
      std::byte* const page = pages.base + static_cast<std::size_t>(id) * pages.stride_bytes;
      for (std::size_t i = 0; i < pages.page_bytes; ++i) page[i] = static_cast<std::byte>(random());
    }
  }
  const std::string file = f.StoredFile();
  CHECK(NumberAt<std::uint32_t>(file, 8) == 2);
  CHECK(NumberAt<std::uint32_t>(file, 2560) == kPieceBytes);
  CHECK(NumberAt<std::uint32_t>(file, 2564) < kPieceBytes * 15 / 16);
  CHECK(NumberAt<std::uint32_t>(file, 2568) == 144'000 - 2 * kPieceBytes);
  const std::string payload = f.Payload();
  f.blocks.Fill(0);
  CHECK(f.Load() == FileStatus::kOk && f.Payload() == payload);
}

void PackedChunksAreWrittenInOrderToo() {
  Fixture any;
  const std::string expected = any.StoredFile();
  for (const bool gaps_too : {true, false}) {
    Fixture f;
    f.ops->SetInOrder(EINVAL, gaps_too);
    if (!gaps_too) f.ops->SetHook(Fail(Call::kAllocate, EOPNOTSUPP));
    for (int round = 0; round < 2; ++round) {  // the first finds it out, the second knows
      CHECK(f.StoredFile() == expected && f.Load() == FileStatus::kOk);
      CHECK(f.root.habits().order == WriteOrder::kInOrder && f.dir.CountFiles("ns/tmp") == 0);
      std::filesystem::remove(f.dir / kPath);
    }
  }
}

void EveryDamagedByteOfAPackedFileIsFound() {
  for (const bool keyed : {false, true}) {
    Fixture f;
    if (keyed) f.identity.auth_key = &f.secret;
    const std::string good = f.StoredFile();
    const std::uint32_t last = NumberAt<std::uint32_t>(good, 2560);  // of the first piece
    for (std::size_t at = 0; at < kPageBytes + last; at += at < 4096 ? 7 : 501) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ 0x10);
      f.dir.Write(kPath, bad);
      CHECK(f.Load() == FileStatus::kCorrupt && f.removed && !f.dir.Exists(kPath));
    }
    for (const std::size_t length : {std::size_t{0}, std::size_t{4096}, std::size_t{4096 + last},
                                     good.size() - 4096, good.size() - 1, good.size() + 4096}) {
      std::string bad = good;
      bad.resize(length);
      f.dir.Write(kPath, bad);
      CHECK(f.Load() == FileStatus::kCorrupt && f.removed);
    }
  }
}

// Whoever made the checksums right: the numbers of a packed piece are not believed.
void MalformedPiecesAreCorrupt() {
  Fixture f;
  const std::string good = f.StoredFile();
  const std::string before = f.blocks.All();
  std::mt19937_64 random(1);
  int loaded = 0;
  const std::uint32_t stored = NumberAt<std::uint32_t>(good, 2560);
  for (int round = 0; round < 1500; ++round) {
    std::string bad = good;
    const std::size_t range = round < 1000 ? 16 + 4 * 18 : stored;
    const std::size_t at = random() % range;  // of the head and the index; of all
    bad[kPageBytes + (at < 16 || range == stored ? at : 240 + at)] ^=
        static_cast<char>(1 << random() % 8);
    Seal(bad, 0);
    f.dir.Write(kPath, bad);
    const FileStatus status = f.Load();
    CHECK(status == FileStatus::kCorrupt || status == FileStatus::kOk);
    CHECK(f.removed == (status == FileStatus::kCorrupt));
    loaded += status == FileStatus::kOk ? 1 : 0;
  }
  CHECK(loaded > 0 && loaded < 900);  // numbers that changed, in sound pieces
  // Of the head: magic, code_bits, table_scope, table_entries, values, escapes; of the index.
  for (const std::size_t at : {0, 4, 5, 6, 8, 12, 260, 320}) {
    std::string bad = good;
    bad[kPageBytes + at] ^= 16;
    Seal(bad, 0);
    f.dir.Write(kPath, bad);
    CHECK(f.Load() == FileStatus::kCorrupt && f.removed);
  }
  for (const std::uint32_t wrong : {0u, 1u, 256u, stored - 256, stored + 256, kPieceBytes - 1}) {
    std::string bad = good;
    SetNumber(bad, 2560, wrong);
    bad.resize(good.size() + RoundUpToPage(wrong) - RoundUpToPage(stored));
    Seal(bad, wrong == 0 ? -1 : 0);
    f.dir.Write(kPath, bad);
    CHECK(f.Load() == FileStatus::kCorrupt && f.removed);
  }
  f.blocks.Fill(0);
  f.dir.Write(kPath, good);
  CHECK(f.Load() == FileStatus::kOk && !f.removed);
  CHECK(before.size() == f.blocks.All().size());
}

// A kvshelf to come has stored it, and its readers need it.
void ChunksOfLaterVersionsAreLeftAlone() {
  const std::pair<std::size_t, std::uint32_t> changes[] = {{8, 3}, {8, 0xFFFFFFFF}, {280, 2}};
  for (const auto& [offset, number] : changes) {
    for (const bool other_sizes : {false, true}) {
      Fixture f;
      std::string later = f.StoredFile();
      SetNumber(later, offset, number);
      if (other_sizes) SetNumber(later, 36, 9u);
      Seal(later);
      f.dir.Write(kPath, later);
      CHECK(f.Load() == FileStatus::kForeign && !f.removed && f.dir.Read(kPath) == later);
      CHECK(f.Store().status == FileStatus::kForeign && !f.removed);
      CHECK(f.dir.Read(kPath) == later && f.dir.CountFiles("ns/tmp") == 0);
      f.request.path = "ns/r0/abc/another.kv";
      CHECK(f.Store().ok() && f.Load() == FileStatus::kOk);
    }
  }
}

Verdict Scrubbed(const Fixture& f, const std::string& file, bool keyed) {
  f.dir.Write("scrubbed", file);
  const UniqueFd fd(::open((f.dir / "scrubbed").c_str(), O_RDONLY | O_CLOEXEC));
  const std::string digest(kNamespaceBytes, '\0');
  const ExpectedChunk expected{digest, f.request.key, 0, keyed, keyed};
  const auto judge = [&](std::size_t step) {
    ChunkVerifier verifier(step, keyed ? kSecret : "");
    bool done = verifier.Begin(fd.get(), file.size(), expected);
    while (!done) done = verifier.Step();
    return verifier.verdict();
  };
  const Verdict verdict = judge(1 << 20);
  CHECK(judge(8192) == verdict);
  return verdict;
}

void ScrubJudgesPackedFiles() {
  for (const bool keyed : {false, true}) {
    Fixture f;
    if (keyed) f.identity.auth_key = &f.secret;
    const std::string good = f.StoredFile();
    CHECK(Scrubbed(f, good, keyed) == Verdict::kSound);
    for (const std::size_t at :
         {std::size_t{100}, std::size_t{4096}, std::size_t{60'000}, std::size_t{120'000}}) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ 1);
      CHECK(Scrubbed(f, bad, keyed) == Verdict::kCorrupt);
    }
    std::string padded = good;
    padded[kPageBytes + RoundUpToPage(NumberAt<std::uint32_t>(good, 2560)) - 1] = 1;
    CHECK(Scrubbed(f, padded, keyed) == Verdict::kPadding);
    CHECK(Scrubbed(f, good.substr(0, good.size() - 4096), keyed) == Verdict::kCorrupt);
  }
  Fixture f;
  std::string malformed = f.StoredFile();
  malformed[kPageBytes + 12] ^= 1;  // one escape more or fewer
  Seal(malformed, 0);
  CHECK(Scrubbed(f, malformed, false) == Verdict::kCorrupt);
  std::string later = f.dir.Read(kPath);
  SetNumber(later, 280, 2u);
  Seal(later);
  CHECK(Scrubbed(f, later, false) == Verdict::kVersion);
}

}  // namespace
}  // namespace kvshelf

int main() {
  using namespace kvshelf;
  return testing::RunTests({
      {"what was packed is loaded", WhatWasPackedIsLoaded},
      {"parts of packed chunks are loaded", PartsOfPackedChunksAreLoaded},
      {"what does not shrink is a file of the first version",
       WhatDoesNotShrinkIsAFileOfTheFirstVersion},
      {"a piece that does not shrink lies beside packed ones",
       APieceThatDoesNotShrinkLiesBesidePackedOnes},
      {"packed chunks are written in order too", PackedChunksAreWrittenInOrderToo},
      {"every damaged byte of a packed file is found", EveryDamagedByteOfAPackedFileIsFound},
      {"malformed pieces are corrupt", MalformedPiecesAreCorrupt},
      {"chunks of later versions are left alone", ChunksOfLaterVersionsAreLeftAlone},
      {"scrub judges packed files", ScrubJudgesPackedFiles},
  });
}
