// One chunk file, written and read without an engine.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kvshelf/chunk_io.h"
#include "support.h"

namespace kvshelf::testing {

inline const std::string kPath = "ns/r0/abc/abcdef-g0.kv";

// Of six blocks.
struct ChunkFixture {
  TempDir dir;
  std::shared_ptr<FaultOps> ops = std::make_shared<FaultOps>();
  RootDir root{ops, dir.path(), "host-boot-1-2", 0750};
  Blocks blocks{3, 3000, 20};
  GroupMemory memory = blocks.Describe();
  std::shared_ptr<Device> device = MakeHostDevice();
  std::shared_ptr<ThreadContext> made = MakeThreadContext(*device, 8192, 8192);
  ThreadContext& context = *made;
  ChunkIoOptions options;
  ChunkIdentity identity;
  ChunkRequest request;
  std::vector<std::int32_t> ids = {4, 5, 9, 1, 0, 17};
  bool removed = false;

  ChunkFixture() {
    options.step_bytes = 8192;
    options.piece_bytes = 16384;
    blocks.FillRandom(1);
    request = {kPath, "key of a chunk", &memory, 0, ids};
    identity = {{}, request.key, 0, memory.geometry(), memory.block_bytes()};
  }

  FileResult Store() {
    FileResult result;
    CopyGate gate;
    ChunkWriter writer(root, options, identity, request);
    const auto start = writer.Begin(&result, context);
    removed = writer.removed_bad();
    if (start != ChunkWriter::Start::kReady) return result;
    while (result.ok() && writer.written_bytes() < request.payload_bytes()) {
      const std::uint64_t begin = writer.written_bytes();
      const std::uint64_t end = std::min(begin + options.step_bytes, request.payload_bytes());
      if (writer.shape().packs) {
        const auto payload = Payload();
        const auto bytes =
            std::min<std::size_t>(writer.shape().piece_bytes, payload.size() - begin);
        std::vector<std::byte> piece(bytes);
        std::memcpy(piece.data(), payload.data() + begin, bytes);
        result = writer.WritePiece(piece, context);
        continue;
      }
      memory.Map(request.block_ids, begin, end, context.segments);
      result = writer.WriteSegments(context.segments, gate, context);
    }
    if (result.ok()) result = writer.Publish(gate, context);
    removed = writer.removed_bad();
    return result;
  }
  FileStatus Load() {
    CopyGate gate;
    return ChunkReader(root, options, identity, request, context).Load(gate, &removed).status;
  }
  std::string Payload() const {
    std::string bytes;
    for (const std::int32_t id : request.block_ids)
      bytes += blocks.Block(static_cast<std::size_t>(id));
    return bytes;
  }
};

}  // namespace kvshelf::testing
