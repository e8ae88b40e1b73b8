#include <algorithm>
#include <cerrno>

#include "kvshelf/bf16_pack.h"
#include "kvshelf/chunk_io.h"
#include "kvshelf/dcheck.h"

namespace kvshelf {
namespace {

// The one place where the errno of a read becomes a status.
FileResult FromReadError(int error) {
  switch (error) {
    case ENOENT:
    case ENOTDIR:
    case ESTALE:  // removed by another client while we had it open
      return {FileStatus::kNotFound, 0};
    default:
      return FileResult::IoError(error);
  }
}

}  // namespace

std::shared_ptr<ThreadContext> MakeThreadContext(Device& device, std::uint64_t step_bytes,
                                                 std::uint64_t ring_bytes) {
  auto made = std::make_shared<ThreadContext>();
  ThreadContext& context = *made;
  if (!device.host_accessible()) {
    for (StagingBuffer& buffer : context.ring) buffer = device.AllocateStaging(ring_bytes);
  }
  context.step = device.AllocateStaging(step_bytes);
  context.page = AllocateAligned(kPageBytes);
  context.stream = device.NewStream();
  return made;
}

FileResult ChunkReader::LoadPart(CopyGate& gate, std::uint64_t begin, std::uint64_t end,
                                 bool* removed) {
  KVSHELF_DCHECK(begin < end && end <= request_.payload_bytes());
  *removed = false;
  FileResult result = Open();
  const bool ours = result.ok();  // a regular file; what else has its name is not removed
  if (result.ok()) result = CheckHeader(begin, end);
  if (result.ok()) result = ReadPieces(gate);
  // A load that was given up may have failed for no fault of the file. Of several threads that fail
  // with parts of one file, the first says what became of it: the others may find it gone.
  if (result.ok()) return result;
  if (!gate.Revoke()) return {FileStatus::kCancelled, 0};
  if (IsBad(result) && ours && options_.remove_bad) *removed = RemoveBad() == BadFile::kRemoved;
  return result;
}

FileResult ChunkReader::Inspect(BadFile* bad) {
  *bad = BadFile::kKept;
  FileResult result = Open();
  if (!result.ok()) return result;  // what is no regular file is not removed
  result = CheckHeader(0, 0);
  if (result.ok()) {
    PieceCoder coder(identity_.auth_key, header().salt);
    if (!HeaderIsAuthentic(header(), coder)) result = {FileStatus::kForeign, 0};
  }
  if (IsBad(result) && options_.remove_bad) *bad = RemoveBad();
  return result;
}

// What only a later kvshelf can judge is left to it.
bool ChunkReader::IsBad(const FileResult& result) const {
  if (!is_known_) return false;
  return result.status == FileStatus::kCorrupt || result.status == FileStatus::kForeign ||
         lacks_blocks_;
}

FileResult ChunkReader::Open() {
  // O_NONBLOCK: opening a FIFO that somebody put there must not hang. Regular files ignore it.
  // O_NOATIME: touches keep a request's chunks in their order, which a read would undo.
  const int flags = O_RDONLY | O_NONBLOCK | O_NOCTTY | O_NOATIME;
  FileOps& ops = root_.ops();
  int fd = -EINVAL;
  if (options_.direct) {
    fd = ops.OpenBeneath(root_.fd(), request_.path.c_str(), flags | O_DIRECT, 0);
  }
  if (fd == -EINVAL) fd = ops.OpenBeneath(root_.fd(), request_.path.c_str(), flags, 0);
  // A symbolic link or a socket is not a regular file; it is not ours to remove either.
  if (fd == -ELOOP || fd == -ENXIO) return {FileStatus::kCorrupt, 0};
  if (fd < 0) return FromReadError(-fd);
  file_ = UniqueFd(fd);
  const int error = ops.Fstat(fd, &stat_);
  if (error < 0) return FromReadError(-error);
  if (!S_ISREG(stat_.st_mode)) return {FileStatus::kCorrupt, 0};
  return {};
}

FileResult ChunkReader::CheckHeader(std::uint64_t begin, std::uint64_t end) {
  const auto file_bytes = static_cast<std::uint64_t>(stat_.st_size);
  if (!S_ISREG(stat_.st_mode) || file_bytes < kPageBytes) return {FileStatus::kCorrupt, 0};
  const FileResult result = ReadFully(context_.page.data(), kPageBytes, 0);
  if (!result.ok()) return result;
  if (!HeaderIsSound(header())) return {FileStatus::kCorrupt, 0};
  is_known_ = HeaderIsKnown(header());
  if (!HeaderMatches(header(), identity_)) return {FileStatus::kForeign, 0};
  if (!SizesAgree(header(), file_bytes)) return {FileStatus::kCorrupt, 0};
  return CheckBlocks(begin, end);
}

FileResult ChunkReader::CheckBlocks(std::uint64_t begin, std::uint64_t end) {
  const ChunkHeader& header = this->header();
  if (!HasBlocks(header, request_.first_block, request_.block_count())) {
    lacks_blocks_ = true;
    return {FileStatus::kNotFound, 0};
  }
  request_begin_ = (request_.first_block - header.first_block) * header.block_bytes;
  wanted_begin_ = request_begin_ + begin;
  wanted_end_ = request_begin_ + end;
  // A piece is verified as a whole, so it is for the part in which it begins, and the request's
  // first piece for the first part: else each part that touches a piece longer than the engine's
  // own would read all of it.
  if (options_.verify) {
    const std::uint64_t request_end = request_begin_ + request_.payload_bytes();
    const auto next_piece = [&](std::uint64_t at) {
      const std::uint64_t pieces = (at + header.piece_bytes - 1) / header.piece_bytes;
      return std::min(pieces * header.piece_bytes, request_end);
    };
    if (begin > 0) wanted_begin_ = next_piece(wanted_begin_);
    wanted_end_ = next_piece(wanted_end_);
  }
  return {};
}

FileResult ChunkReader::ReadPieces(CopyGate& gate) {
  const ChunkHeader& header = this->header();
  PieceCoder coder(identity_.auth_key, header.salt);
  if (!HeaderIsAuthentic(header, coder)) return {FileStatus::kForeign, 0};
  FileResult result;
  if (wanted_begin_ == wanted_end_) return result;  // all is in pieces that begin in other parts
  const std::uint64_t first = wanted_begin_ / header.piece_bytes;
  file_offset_ = kPageBytes;
  for (std::uint64_t piece = 0; piece < first; ++piece) {
    file_offset_ += RoundUpToPage(StoredBytes(header, piece));
  }
  for (std::uint64_t piece = first; result.ok() && piece * header.piece_bytes < wanted_end_;
       ++piece) {
    coder.Begin(static_cast<std::uint32_t>(piece));
    const std::uint64_t stored = StoredBytes(header, piece);
    result = stored < PlainBytes(header, piece) ? ReadPacked(gate, piece, coder)
                                                : ReadPlain(gate, piece, coder);
    file_offset_ += RoundUpToPage(stored);
  }
  return result.ok() ? DeliverRing(gate) : result;
}

bool ChunkReader::IsRight(std::size_t piece, PieceCoder& coder) const {
  Tag code;
  return !options_.verify || (coder.End(&code) && code == PieceCode(header(), piece));
}

// Steps are small so that each is hashed and copied while it is in L2. Bytes reach block memory
// before their piece is known to be right; a piece that is not fails the file, whose blocks are
// then undefined.
FileResult ChunkReader::ReadPlain(CopyGate& gate, std::size_t piece, PieceCoder& coder) {
  const std::uint64_t piece_begin = piece * std::uint64_t{header().piece_bytes};
  std::uint64_t begin = piece_begin;
  std::uint64_t end = begin + PlainBytes(header(), piece);
  if (!options_.verify) {  // then the unwanted part of a piece need not be read
    begin = std::max(begin, wanted_begin_ & ~(kPageBytes - 1));
    end = std::min(end, wanted_end_);
  }
  while (begin < end) {
    std::uint64_t bytes = 0;
    std::byte* const room = Room(begin, end, &bytes);
    if (room == nullptr) return FileResult::IoError(EIO);
    FileResult result = ReadSteps(gate, file_offset_ + (begin - piece_begin), bytes, room, coder);
    if (result.ok()) result = Deliver(gate, begin, begin + bytes);
    if (!result.ok()) return result;
    begin += bytes;
  }
  return IsRight(piece, coder) ? FileResult{} : FileResult{FileStatus::kCorrupt, 0};
}

// A packed piece is verified first: nothing is unpacked but what a writer has packed. It is small
// enough to be in cache still. A device that unpacks pieces itself would take `packed` from here.
FileResult ChunkReader::ReadPacked(CopyGate& gate, std::size_t piece, PieceCoder& coder) {
  const std::uint64_t begin = piece * std::uint64_t{header().piece_bytes};
  const std::uint64_t stored = StoredBytes(header(), piece);
  if (!Reserve(context_.packed, RoundUpToPage(stored))) return FileResult::IoError(ENOMEM);
  const FileResult result = ReadSteps(gate, file_offset_, stored, context_.packed.data(), coder);
  if (!result.ok()) return result;
  if (!IsRight(piece, coder)) return {FileStatus::kCorrupt, 0};
  const auto* const packed = reinterpret_cast<const std::uint8_t*>(context_.packed.data());
  return Unpack(gate, begin, begin + PlainBytes(header(), piece), {packed, stored});
}

FileResult ChunkReader::Unpack(CopyGate& gate, std::uint64_t begin, std::uint64_t end,
                               std::span<const std::uint8_t> packed) {
  PieceUnpacker unpacker(packed, (end - begin) / sizeof(std::uint16_t));
  bool is_whole = (end - begin) % sizeof(std::uint16_t) == 0;
  while (is_whole && begin < end) {
    std::uint64_t bytes = 0;
    std::byte* const room = Room(begin, end, &bytes);
    if (room == nullptr) return FileResult::IoError(EIO);
    is_whole = unpacker.Next({reinterpret_cast<std::uint16_t*>(room), bytes / 2});
    if (!is_whole) break;
    const FileResult result = Deliver(gate, begin, begin + bytes);
    if (!result.ok()) return result;
    begin += bytes;
  }
  return is_whole && unpacker.AtEnd() ? FileResult{} : FileResult{FileStatus::kCorrupt, 0};
}

// The step buffer; or, for a device that copies on its own, what is free in one of two larger ones:
// its copy is begun when it is full, and left alone until the buffer's turn comes again or the file
// ends. So reading and copying overlap.
std::byte* ChunkReader::Room(std::uint64_t begin, std::uint64_t end, std::uint64_t* bytes) {
  if (!context_.ring[0]) {
    *bytes = std::min<std::uint64_t>(context_.step.size(), end - begin);
    return context_.step.data();
  }
  if (ring_begin_ == ring_end_) {  // it is empty: its last copy may be under way
    ring_begin_ = ring_end_ = begin;
    context_.Pause();
    const bool copied = context_.stream->WaitFor(context_.last_copy[context_.turn]);
    context_.Step();
    if (!copied) return nullptr;
  }
  KVSHELF_DCHECK(ring_end_ == begin);
  const StagingBuffer& ring = context_.ring[context_.turn];
  const std::uint64_t used = ring_end_ - ring_begin_;
  *bytes = std::min<std::uint64_t>(ring.size() - used, end - begin);
  return ring.data() + used;
}

// Copies the wanted part of payload bytes [begin, end), which are where Room has said.
FileResult ChunkReader::Deliver(CopyGate& gate, std::uint64_t begin, std::uint64_t end) {
  if (context_.ring[0]) {
    ring_end_ = end;
    const bool is_full = ring_end_ - ring_begin_ == context_.ring[context_.turn].size();
    return is_full ? DeliverRing(gate) : FileResult{};
  }
  const std::uint64_t from = std::max(begin, wanted_begin_);
  const std::uint64_t to = std::min(end, wanted_end_);
  if (from >= to) return {};
  Map(from, to);
  const std::byte* source = context_.step.data() + (from - begin);
  const bool copied = gate.Copy(context_.stream, [&](CopyStream& stream) {
    // The step buffer is reused at once, so a device that copies later is waited for.
    return stream.BeginIn(source, context_.segments) && stream.Wait();
  });
  return copied ? FileResult{} : FileResult::IoError(EIO);
}

FileResult ChunkReader::DeliverRing(CopyGate& gate) {
  const std::uint64_t from = std::max(ring_begin_, wanted_begin_);
  const std::uint64_t to = std::min(ring_end_, wanted_end_);
  const std::uint64_t skipped = from - ring_begin_;
  ring_begin_ = ring_end_;
  if (from >= to) return {};
  const std::size_t turn = context_.turn;
  context_.turn = (turn + 1) % context_.ring.size();
  Map(from, to);
  const bool begun = gate.Copy(context_.stream, [&](CopyStream& stream) {
    return stream.BeginIn(context_.ring[turn].data() + skipped, context_.segments);
  });
  // Also after a failure: part of the copy may be under way.
  context_.last_copy[turn] = context_.stream->begun();
  return begun ? FileResult{} : FileResult::IoError(EIO);
}

FileResult ChunkReader::ReadSteps(CopyGate& gate, std::uint64_t offset, std::uint64_t bytes,
                                  std::byte* data, PieceCoder& coder) {
  for (std::uint64_t at = 0; at < bytes;) {
    if (gate.revoked()) return {FileStatus::kCancelled, 0};
    const std::uint64_t step = std::min<std::uint64_t>(context_.step.size(), bytes - at);
    const std::uint64_t read_bytes = options_.direct ? RoundUpToPage(step) : step;
    const FileResult result = ReadFully(data + at, read_bytes, offset + at);
    if (!result.ok()) return result;
    if (options_.verify) coder.Update(data + at, step);
    at += step;
  }
  return {};
}

FileResult ChunkReader::ReadFully(std::byte* data, std::uint64_t bytes, std::uint64_t offset) {
  std::uint64_t done = 0;
  while (done < bytes) {
    const ssize_t result = root_.ops().Pread(file_.get(), data + done, bytes - done,
                                             static_cast<off_t>(offset + done));
    if (result < 0) return FromReadError(static_cast<int>(-result));
    if (result == 0) return {FileStatus::kCorrupt, 0};  // shorter than fstat said
    context_.StepRead();
    done += static_cast<std::uint64_t>(result);
  }
  return {};
}

void ChunkReader::Map(std::uint64_t begin, std::uint64_t end) {
  request_.memory->Map(request_.block_ids, begin - request_begin_, end - request_begin_,
                       context_.segments);
}

BadFile ChunkReader::RemoveBad() {
  const auto [folder, name] = SplitPath(request_.path);
  const int opened = root_.OpenFolder(folder);
  if (opened < 0) return opened == -ENOENT ? BadFile::kReplaced : BadFile::kKept;
  const UniqueFd folder_fd(opened);
  struct stat now{};
  const int found = root_.ops().StatAt(folder_fd.get(), name.c_str(), &now);
  if (found == -ENOENT) return BadFile::kReplaced;
  if (found < 0) return BadFile::kKept;
  // Our descriptor keeps the inode alive, so the same number means the very file that we read and
  // not a good one that somebody has published since.
  if (now.st_dev != stat_.st_dev || now.st_ino != stat_.st_ino) return BadFile::kReplaced;
  const int removed = root_.ops().UnlinkAt(folder_fd.get(), name.c_str());
  if (removed == -ENOENT) return BadFile::kReplaced;
  return removed < 0 ? BadFile::kKept : BadFile::kRemoved;
}

}  // namespace kvshelf
