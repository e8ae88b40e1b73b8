// tests/vectors, read by the native reader: what docs/format.md says, byte for byte.
//
// vectors.tsv has one case a line: name, file, namespace, key, rank, geometry, page sizes, first
// block, block count, status, CRC-64 of the payload, authentication key or "-" (numbers decimal,
// bytes and 64-bit ones hex).
#include <filesystem>
#include <fstream>
#include <iterator>
#include <numeric>
#include <sstream>
#include <string>
#include <vector>

#include "check.h"
#include "kvshelf/chunk_io.h"
#include "kvshelf/crc64.h"

namespace kvshelf {
namespace {

constexpr std::size_t kColumns = 12;
constexpr std::size_t kBlocks = 8;  // more than any vector has
constexpr std::byte kFill{0xEE};

struct Case {
  std::string name, file, key, secret;
  NamespaceDigest namespace_digest{};
  std::uint32_t rank = 0, first_block = 0, block_count = 0;
  std::uint64_t geometry = 0, payload_crc = 0;
  std::vector<std::uint64_t> page_bytes;
  FileStatus status = FileStatus::kOk;
};

std::vector<std::string> Split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

std::string FromHex(const std::string& hex) {
  std::string bytes;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  }
  return bytes;
}

std::uint32_t Number(const std::string& text) {
  return static_cast<std::uint32_t>(std::stoul(text));
}

FileStatus StatusOf(const std::string& name) {
  if (name == "OK") return FileStatus::kOk;
  if (name == "NOT_FOUND") return FileStatus::kNotFound;
  CHECK(name == "CORRUPT" || name == "FOREIGN");
  return name == "CORRUPT" ? FileStatus::kCorrupt : FileStatus::kForeign;
}

Case Parse(const std::string& line) {
  const std::vector<std::string> part = Split(line, '\t');
  CHECK(part.size() == kColumns);
  Case result;
  if (part.size() != kColumns) return result;
  result.name = part[0];
  result.file = part[1];
  const std::string digest = FromHex(part[2]);
  CHECK(digest.size() == result.namespace_digest.size());
  std::copy(digest.begin(), digest.end(), result.namespace_digest.begin());
  result.key = FromHex(part[3]);
  result.rank = Number(part[4]);
  result.geometry = std::stoull(part[5], nullptr, 16);
  for (const std::string& size : Split(part[6], ',')) result.page_bytes.push_back(Number(size));
  result.first_block = Number(part[7]);
  result.block_count = Number(part[8]);
  result.status = StatusOf(part[9]);
  result.payload_crc = std::stoull(part[10], nullptr, 16);
  if (part[11] != "-") result.secret = FromHex(part[11]);
  return result;
}

std::vector<Case> Cases() {
  std::ifstream file(std::filesystem::path(KVSHELF_VECTORS) / "vectors.tsv");
  std::vector<Case> cases;
  for (std::string line; std::getline(file, line);) cases.push_back(Parse(line));
  return cases;
}

// Reads the case's file as its reader would; the payload has the wanted blocks in file order.
FileStatus Read(const Case& wanted, const ChunkIoOptions& options, std::string* payload) {
  std::vector<std::vector<std::byte>> layers;
  std::vector<Pages> pages;
  for (const std::uint64_t bytes : wanted.page_bytes) {
    layers.emplace_back(kBlocks * bytes, kFill);
    pages.push_back({layers.back().data(), bytes, bytes});
  }
  const GroupMemory memory(pages, kBlocks, wanted.geometry);
  std::vector<std::int32_t> ids(wanted.block_count);
  std::iota(ids.begin(), ids.end(), 1);
  const ChunkRequest request{wanted.file, wanted.key, &memory, wanted.first_block, ids};
  std::optional<AuthKey> auth_key;
  if (!wanted.secret.empty()) auth_key.emplace(wanted.secret);
  const ChunkIdentity identity{
      wanted.namespace_digest, request.key,          wanted.rank,
      wanted.geometry,         memory.block_bytes(), auth_key ? &*auth_key : nullptr};
  RootDir root(MakePosixFileOps(), KVSHELF_VECTORS, "host-boot-1-2", 0750);
  const std::shared_ptr<Device> device = MakeHostDevice();
  const auto made = MakeThreadContext(*device, kPageBytes, kPageBytes);
  ThreadContext& context = *made;
  CopyGate gate;
  bool removed = false;
  const FileResult result =
      ChunkReader(root, options, identity, request, context).Load(gate, &removed);
  CHECK(!removed);
  for (const std::int32_t id : ids) {
    for (const Pages& page : pages) {
      const auto* begin =
          reinterpret_cast<const char*>(page.base) + static_cast<std::size_t>(id) * page.page_bytes;
      payload->append(begin, page.page_bytes);
    }
  }
  return result.status;
}

void EveryVectorReadsAsItMust() {
  const std::vector<Case> cases = Cases();
  CHECK(cases.size() > 40);
  for (const Case& wanted : cases) {
    ChunkIoOptions options;
    options.step_bytes = kPageBytes;
    options.piece_bytes = kPageBytes;
    options.remove_bad = false;
    std::string payload;
    const FileStatus status = Read(wanted, options, &payload);
    const bool right =
        status == wanted.status && (status != FileStatus::kOk ||
                                    Crc64(0, payload.data(), payload.size()) == wanted.payload_crc);
    CHECK(right);
    if (!right) std::fprintf(stderr, "vector: %s\n", wanted.name.c_str());
  }
}

}  // namespace
}  // namespace kvshelf

int main() {
  return kvshelf::testing::RunTests({
      {"every vector reads as it must", kvshelf::EveryVectorReadsAsItMust},
  });
}
