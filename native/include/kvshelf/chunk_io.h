// One chunk file: read and verify it, or write and publish it. No threads in here; an object is
// used by one thread at a time. See docs/format.md.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kvshelf/config.h"
#include "kvshelf/copy_gate.h"
#include "kvshelf/device.h"
#include "kvshelf/format.h"
#include "kvshelf/root_dir.h"

namespace kvshelf {

// How chunk files are read and written.
struct ChunkIoOptions {
  std::uint64_t step_bytes = 256 << 10;  // a multiple of kPageBytes
  std::uint32_t piece_bytes = 4 << 20;   // of files that are written
  bool verify = true;
  bool remove_bad = true;
  bool direct = false;
  bool compress = false;  // pack the pieces of files that are written
  Durability durability = Durability::kNone;
  mode_t file_mode = 0640;
};

// How the file of a payload is cut into pieces.
struct PieceShape {
  std::uint32_t piece_bytes = 0;
  bool packs = false;  // each piece is packed where that saves a page
};
PieceShape ShapeOf(const ChunkIoOptions& options, const ChunkIdentity& identity,
                   std::uint64_t payload_bytes);

// What a file keeps of a piece, in `out`: packed where that saves a page, else as it is; and zeros
// to the end of a page. Returns the bytes without the zeros. REQUIRES: room for the whole piece and
// its zeros in `out`, and for the piece in `scratch`, both aligned to pages.
std::uint32_t StorePiece(std::span<const Segment> piece, std::byte* scratch, std::byte* out);

// A file of a job, and the block memory that it is moved from or to.
struct ChunkRequest {
  std::string path;
  std::string key;
  const GroupMemory* memory = nullptr;
  std::uint32_t first_block = 0;
  std::span<const std::int32_t> block_ids;

  std::uint32_t block_count() const { return static_cast<std::uint32_t>(block_ids.size()); }
  std::uint64_t payload_bytes() const { return memory->block_bytes() * block_ids.size(); }
};

// What a thread owns to move bytes with.
struct ThreadContext {
  StagingBuffer step;  // step_bytes, hot in the thread's L2
  StagingBuffer page;  // kPageBytes, for headers and padding
  std::shared_ptr<CopyStream> stream;
  // For a device that copies on its own: while it copies one of these, the next is read.
  // `last_copy` is the copy (in CopyStream::begun) that uses each.
  std::array<StagingBuffer, 2> ring;
  std::array<std::uint64_t, 2> last_copy{};
  std::size_t turn = 0;
  // When a load last went on, and when bytes last came from storage, by Clock: what tells slow
  // storage from none. Any thread may look.
  std::atomic<Clock::rep> last_step{0};
  std::atomic<Clock::rep> last_read{0};
  void Step() { last_step = Clock::now().time_since_epoch().count(); }
  void StepRead() { last_read = last_step = Clock::now().time_since_epoch().count(); }
  // While it waits for the device, which may be long behind a model's work.
  void Pause() { last_step = Clock::duration::max().count(); }
  std::vector<Segment> segments;  // scratch
  std::vector<iovec> parts;       // scratch
  // A piece as it is and as the file has it. Made when the first is packed or unpacked: Reserve.
  StagingBuffer plain;
  StagingBuffer packed;
};
// Makes `buffer` hold so many bytes, page-aligned; what it held is lost. False: no memory.
bool Reserve(StagingBuffer& buffer, std::uint64_t bytes);

std::shared_ptr<ThreadContext> MakeThreadContext(Device& device, std::uint64_t step_bytes,
                                                 std::uint64_t ring_bytes);

// What became of a bad file. kReplaced: it lost its name to somebody else, before it was removed.
enum class BadFile { kKept, kRemoved, kReplaced };

class ChunkReader {
 public:
  ChunkReader(RootDir& root, const ChunkIoOptions& options, const ChunkIdentity& identity,
              const ChunkRequest& request, ThreadContext& context)
      : root_(root), options_(options), identity_(identity), request_(request), context_(context) {}

  // Reads what the request wants into its block memory, through `gate`, which a failure revokes.
  // kCancelled: somebody else had revoked it. Copies of a device that copies on its own may still
  // be under way. Sets `*removed` if a bad file was removed.
  FileResult Load(CopyGate& gate, bool* removed) {
    return LoadPart(gate, 0, request_.payload_bytes(), removed);
  }

  // The same for a part of the request, bytes [begin, end) of its payload: what of it lies in
  // pieces that begin there, and if it is the first part, also in the piece in which the request
  // begins. Unverified, those bytes alone.
  FileResult LoadPart(CopyGate& gate, std::uint64_t begin, std::uint64_t end, bool* removed);

  // Reads the header alone, one page: whether the file is the chunk that a load of the request
  // would take. Removes a bad file as a load does.
  FileResult Inspect(BadFile* bad);

 private:
  const ChunkHeader& header() const {
    return *reinterpret_cast<const ChunkHeader*>(context_.page.data());
  }
  FileResult Open();
  FileResult CheckHeader(std::uint64_t begin, std::uint64_t end);
  FileResult CheckBlocks(std::uint64_t begin, std::uint64_t end);
  bool IsBad(const FileResult& result) const;
  FileResult ReadPieces(CopyGate& gate);
  FileResult ReadPlain(CopyGate& gate, std::size_t piece, PieceCoder& coder);
  FileResult ReadPacked(CopyGate& gate, std::size_t piece, PieceCoder& coder);
  FileResult Unpack(CopyGate& gate, std::uint64_t begin, std::uint64_t end,
                    std::span<const std::uint8_t> packed);
  bool IsRight(std::size_t piece, PieceCoder& coder) const;
  // Room for payload bytes from `begin` on, where the next Deliver takes them from: at most up to
  // `end`. Null: the device refused.
  std::byte* Room(std::uint64_t begin, std::uint64_t end, std::uint64_t* bytes);
  FileResult Deliver(CopyGate& gate, std::uint64_t begin, std::uint64_t end);
  FileResult DeliverRing(CopyGate& gate);
  FileResult ReadSteps(CopyGate& gate, std::uint64_t offset, std::uint64_t bytes, std::byte* data,
                       PieceCoder& coder);
  FileResult ReadFully(std::byte* data, std::uint64_t bytes, std::uint64_t offset);
  // The segments of block memory for payload bytes [begin, end) of the file.
  void Map(std::uint64_t begin, std::uint64_t end);
  BadFile RemoveBad();

  RootDir& root_;
  const ChunkIoOptions& options_;
  const ChunkIdentity& identity_;
  const ChunkRequest& request_;
  ThreadContext& context_;
  UniqueFd file_;
  struct stat stat_{};
  bool lacks_blocks_ = false;      // a sound file that does not hold what is wanted
  bool is_known_ = true;           // of a version that we read
  std::uint64_t file_offset_ = 0;  // where the piece begins that is read
  // Of a device that copies on its own: the payload that waits in the ring to be copied.
  std::uint64_t ring_begin_ = 0;
  std::uint64_t ring_end_ = 0;
  // Of the file's payload: where the request begins, and what is wanted of it.
  std::uint64_t request_begin_ = 0;
  std::uint64_t wanted_begin_ = 0;
  std::uint64_t wanted_end_ = 0;
};

// The codes of a payload's pieces, fed in order.
class PieceHasher {
 public:
  // `key` null: checksums; else tags under a salt of its own.
  PieceHasher(std::uint64_t piece_bytes, const AuthKey* key);
  void Update(const std::byte* data, std::uint64_t bytes);
  // Instead, where pieces are packed: the next piece as StorePiece has made it.
  void AddPiece(const std::byte* data, std::uint32_t stored_bytes);
  // Puts salt and codes into the header of the payload that was fed and seals it. Once. False: a
  // code cannot be told.
  bool Seal(ChunkHeader& header);

 private:
  void EndPiece();

  std::uint64_t piece_bytes_;
  Salt salt_{};
  PieceCoder coder_;
  std::uint64_t in_piece_ = 0;  // bytes fed of the piece that is not ended
  bool ok_ = true;
  std::vector<Tag> codes_;
  std::vector<std::uint32_t> stored_bytes_;  // of AddPiece
};

// Writes one chunk file under a temp name and publishes it. Steps come in order. Destroying an
// unpublished one removes the temp file, which is a system call: only I/O threads may do it.
class ChunkWriter {
 public:
  enum class Start { kReady, kExists, kFailed };

  ChunkWriter(RootDir& root, const ChunkIoOptions& options, const ChunkIdentity& identity,
              const ChunkRequest& request);
  ~ChunkWriter();
  ChunkWriter(const ChunkWriter&) = delete;
  ChunkWriter& operator=(const ChunkWriter&) = delete;

  // Looks whether the chunk is there, and if not creates the temp file. kFailed sets `*result`:
  // kCorrupt or kForeign if something else has the name and is not ours to remove.
  Start Begin(FileResult* result, ThreadContext& context);

  // Appends staged payload bytes, hashed while hot, in steps. With O_DIRECT `data` must be aligned
  // and have room for padding to a whole page.
  FileResult WriteStaged(std::byte* data, std::uint64_t bytes);

  // The same for bytes that somebody else has hashed: AdoptHasher must come before Publish.
  FileResult WriteHashed(std::byte* data, std::uint64_t bytes);
  void AdoptHasher(PieceHasher hasher) { hasher_ = std::move(hasher); }

  // Appends the next piece as StorePiece has made it. REQUIRES: shape().packs.
  FileResult WritePiece(std::byte* data, std::uint32_t stored_bytes, std::uint64_t payload_bytes);

  // The same for pieces that somebody else has hashed: `bytes` of the file, padding included.
  FileResult WritePieces(std::byte* data, std::uint64_t bytes, std::uint64_t payload_bytes);

  // Appends the next step straight from block memory, unless `gate` is revoked. Not with O_DIRECT.
  FileResult WriteSegments(std::span<const Segment> segments, CopyGate& gate,
                           ThreadContext& context);

  // Writes the header, syncs as the settings ask, and gives the file its final name unless `gate`
  // is revoked. A name that the same chunk has taken is success; else fails as Begin does, or with
  // kNotFound where the name is taken by what cannot be seen.
  FileResult Publish(CopyGate& gate, ThreadContext& context);

  // Of the payload; and of the file, once it is published.
  std::uint64_t written_bytes() const { return written_; }
  std::uint64_t file_bytes() const { return FileBytes(header_); }
  const PieceShape& shape() const { return shape_; }
  // Whether a bad file that had the name was removed.
  bool removed_bad() const { return removed_bad_; }

  // Forgets the temp file and leaves its descriptor open: for storage that hangs, where even
  // close() could.
  void Leak();

 private:
  FileResult Examine(const struct stat& found, ThreadContext& context);
  FileResult CreateTemp();
  FileResult GiveNameInFolder(const std::string& folder, const std::string& name, bool* taken);
  FileResult Append(std::byte* data, std::uint64_t bytes);
  bool BeginsInOrder(const FileResult& refused, std::uint64_t kept);
  FileResult WriteHeader(ThreadContext& context);
  void RemoveTemp();

  RootDir& root_;
  const ChunkIoOptions& options_;
  const ChunkIdentity identity_;
  const ChunkRequest& request_;
  const PieceShape shape_;
  ChunkHeader header_;  // sealed by Publish
  PieceHasher hasher_;
  UniqueFd temp_folder_;
  UniqueFd file_;
  std::string temp_name_;
  std::uint64_t written_ = 0;  // payload bytes
  std::uint64_t offset_ = 0;   // bytes behind the header: fewer where pieces are packed
  // Where files must be written in order (RootHabits::order): the whole file, until it is
  // published.
  StagingBuffer whole_;
  bool removed_bad_ = false;
};

}  // namespace kvshelf
