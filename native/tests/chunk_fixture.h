// One chunk file, written and read without an engine.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
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
        const std::uint64_t most = writer.shape().piece_bytes;
        const std::uint64_t piece_end = std::min(begin + most, request.payload_bytes());
        memory.Map(request.block_ids, begin, piece_end, context.segments);
        CHECK(Reserve(context.plain, most) && Reserve(context.packed, most));
        const std::uint32_t stored =
            StorePiece(context.segments, context.plain.data(), context.packed.data());
        result = writer.WritePiece(context.packed.data(), stored, piece_end - begin);
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
