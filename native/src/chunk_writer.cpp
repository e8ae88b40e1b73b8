#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>

#include "kvshelf/chunk_io.h"

namespace kvshelf {
namespace {

// Folders may be removed by an evictor between making and using them.
constexpr int kFolderAttempts = 3;
// A name that is taken by a bad file is free once the file is removed, until somebody damages the
// next one.
constexpr int kNameAttempts = 4;
// Temp names of two engines in one process collide; each collision takes the next number.
constexpr int kTempNameAttempts = 10000;

constexpr std::array<std::byte, kPageBytes> kZeros{};

iovec Part(const std::byte* data, std::uint64_t bytes) {
  return {const_cast<std::byte*>(data), bytes};
}

}  // namespace

ChunkWriter::ChunkWriter(RootDir& root, const ChunkIoOptions& options,
                         const ChunkIdentity& identity, const ChunkRequest& request)
    : root_(root),
      options_(options),
      identity_(identity),
      request_(request),
      header_(MakeHeader(identity, request.first_block, request.block_count(),
                         PieceBytesFor(identity.block_bytes, options.piece_bytes))),
      hasher_(header_.piece_bytes, identity.auth_key) {}

ChunkWriter::~ChunkWriter() { RemoveTemp(); }

ChunkWriter::Start ChunkWriter::Begin(FileResult* result, ThreadContext& context) {
  struct stat existing{};
  // Most chunks are new: one call says so. What is found must also be there without a link in a
  // folder, as a load sees it.
  int found = root_.ops().StatAt(root_.fd(), request_.path.c_str(), &existing);
  if (found >= 0) found = root_.StatBeneath(request_.path, &existing);
  if (found >= 0) {
    const FileResult there = Examine(existing, context);
    if (there.ok()) return Start::kExists;
    if (there.status != FileStatus::kNotFound) {
      *result = there;
      return Start::kFailed;
    }
  }
  *result = CreateTemp();
  return result->ok() ? Start::kReady : Start::kFailed;
}

// Whether what has the name is the chunk. kNotFound: no more, for it was bad and is removed, or
// somebody else removed it.
FileResult ChunkWriter::Examine(const struct stat& found, ThreadContext& context) {
  // Opening a device may do anything, and none of these is ours to remove.
  if (!S_ISREG(found.st_mode)) return {FileStatus::kCorrupt, 0};
  BadFile bad{};
  const FileResult result =
      ChunkReader(root_, options_, identity_, request_, context).Inspect(&bad);
  if (bad == BadFile::kKept) return result;
  removed_bad_ = removed_bad_ || bad == BadFile::kRemoved;
  return {FileStatus::kNotFound, 0};
}

FileResult ChunkWriter::CreateTemp() {
  const std::string folder = request_.path.substr(0, request_.path.find('/')) + "/tmp";
  int fd = -ENOENT;
  for (int attempt = 0; attempt < kFolderAttempts && fd == -ENOENT; ++attempt) {
    const int folder_fd = root_.MakeFolder(folder);
    if (folder_fd == -ENOENT) continue;  // removed between mkdir and open
    if (folder_fd < 0) return FileResult::IoError(-folder_fd);
    temp_folder_ = UniqueFd(folder_fd);
    const int flags = O_WRONLY | O_CREAT | O_EXCL;
    fd = -EEXIST;
    for (int name = 0; name < kTempNameAttempts && fd == -EEXIST; ++name) {
      temp_name_ = root_.NextTempName();
      fd = root_.ops().OpenBeneath(folder_fd, temp_name_.c_str(),
                                   options_.direct ? flags | O_DIRECT : flags, options_.file_mode);
    }
  }
  if (fd < 0) {
    temp_name_.clear();
    return FileResult::IoError(-fd);
  }
  file_ = UniqueFd(fd);
  root_.GiveToUsers(fd, options_.file_mode);
  // A full file system says so before any work is done, and ext4 writes a fifth faster into blocks
  // that it has allocated at once. Where it is not supported there is nothing lost.
  const int allocated = root_.ops().Allocate(fd, static_cast<off_t>(FileBytes(header_)));
  const bool full = allocated == -ENOSPC || allocated == -EDQUOT || allocated == -EFBIG;
  return full ? FileResult::IoError(-allocated) : FileResult{};
}

PieceHasher::PieceHasher(std::uint64_t piece_bytes, const AuthKey* key)
    : piece_bytes_(piece_bytes),
      salt_(key == nullptr ? Salt{} : AuthKey::RandomSalt()),
      coder_(key, salt_) {}

void PieceHasher::Update(const std::byte* data, std::uint64_t bytes) {
  while (bytes > 0) {
    if (in_piece_ == 0) coder_.Begin(static_cast<std::uint32_t>(codes_.size()));
    const std::uint64_t part = std::min(bytes, piece_bytes_ - in_piece_);
    coder_.Update(data, part);
    in_piece_ += part;
    if (in_piece_ == piece_bytes_) EndPiece();
    data += part;
    bytes -= part;
  }
}

void PieceHasher::EndPiece() {
  ok_ = coder_.End(&codes_.emplace_back()) && ok_;
  in_piece_ = 0;
}

bool PieceHasher::Seal(ChunkHeader& header) {
  if (in_piece_ > 0) EndPiece();
  header.salt = salt_;
  for (std::size_t piece = 0; piece < codes_.size(); ++piece) {
    SetPieceCode(header, piece, codes_[piece]);
  }
  return SealHeader(header, coder_) && ok_;
}

FileResult ChunkWriter::WriteStaged(std::byte* data, std::uint64_t bytes) {
  while (bytes > 0) {
    const std::uint64_t step = AlignedEnd(offset_, options_.step_bytes, offset_ + bytes) - offset_;
    hasher_.Update(data, step);
    const FileResult result = WriteHashed(data, step);
    if (!result.ok()) return result;
    data += step;
    bytes -= step;
  }
  return {};
}

FileResult ChunkWriter::WriteHashed(std::byte* data, std::uint64_t bytes) {
  const std::uint64_t at = kPageBytes + offset_;
  offset_ += bytes;
  std::uint64_t write_bytes = bytes;
  if (offset_ == header_.payload_bytes) {
    write_bytes = RoundUpToPage(bytes);
    std::memset(data + bytes, 0, write_bytes - bytes);
  }
  iovec part = Part(data, write_bytes);
  return WriteFully({&part, 1}, at);
}

// Hashing is inside the file's gate, the system call is not: it may hang, and whoever gives the
// file up must not wait for it. That it may then read memory which is somebody else's is harmless:
// wrong bytes can only reach a temp file, and Publish asks the gate after the last write before it
// gives a file its name.
FileResult ChunkWriter::WriteSegments(std::span<const Segment> segments, CopyGate& gate,
                                      ThreadContext& context) {
  while (!segments.empty()) {
    const auto part = segments.first(std::min<std::size_t>(segments.size(), IOV_MAX - 1));
    const std::uint64_t at = kPageBytes + offset_;
    context.parts.clear();
    const bool hashed = gate.Run([&] {
      for (const Segment& segment : part) {
        hasher_.Update(segment.data, segment.bytes);
        offset_ += segment.bytes;
        context.parts.push_back(Part(segment.data, segment.bytes));
      }
      return true;
    });
    if (!hashed) return FileResult::IoError(ECANCELED);
    const std::uint64_t padding = RoundUpToPage(offset_) - offset_;
    if (offset_ == header_.payload_bytes && padding > 0) {
      context.parts.push_back(Part(kZeros.data(), padding));
    }
    const FileResult result = WriteFully(context.parts, at);
    if (!result.ok()) return result;
    segments = segments.subspan(part.size());
  }
  return {};
}

FileResult ChunkWriter::WriteFully(std::span<iovec> parts, std::uint64_t offset) {
  while (!parts.empty()) {
    const ssize_t result = root_.ops().Pwritev(file_.get(), parts, static_cast<off_t>(offset));
    if (result < 0) return FileResult::IoError(static_cast<int>(-result));
    if (result == 0) return FileResult::IoError(ENOSPC);  // would loop for ever
    auto done = static_cast<std::size_t>(result);
    offset += done;
    while (!parts.empty() && done >= parts.front().iov_len) {
      done -= parts.front().iov_len;
      parts = parts.subspan(1);
    }
    if (done > 0) {
      parts.front().iov_base = static_cast<std::byte*>(parts.front().iov_base) + done;
      parts.front().iov_len -= done;
    }
  }
  return {};
}

FileResult ChunkWriter::Publish(CopyGate& gate, ThreadContext& context) {
  if (!hasher_.Seal(header_)) return FileResult::IoError(EIO);
  std::memcpy(context.page.data(), &header_, sizeof(header_));
  iovec part = Part(context.page.data(), kPageBytes);
  const FileResult written = WriteFully({&part, 1}, 0);
  if (!written.ok()) return written;
  FileOps& ops = root_.ops();
  if (options_.durability != Durability::kNone) {
    const int synced = ops.SyncData(file_.get());
    if (synced < 0) return FileResult::IoError(-synced);
  }
  // NFS, JuiceFS and others send what was written when the file is closed, and say then that it
  // failed. Until then another node would find the name and read zeros.
  const int closed = ops.Close(file_.Release());
  if (closed < 0) return FileResult::IoError(-closed);
  if (!gate.ClaimPublication()) return FileResult::IoError(ECANCELED);

  const auto [folder, name] = SplitPath(request_.path);
  for (int attempt = 1;; ++attempt) {
    bool taken = false;
    const FileResult named = GiveNameInFolder(folder, name, &taken);
    if (!named.ok()) return named;
    if (!taken) break;
    struct stat existing{};
    const int found = root_.StatBeneath(request_.path, &existing);
    if (found < 0 && found != -ENOENT && found != -ESTALE) return FileResult::IoError(-found);
    const FileResult there =
        found < 0 ? FileResult{FileStatus::kNotFound, 0} : Examine(existing, context);
    if (there.ok()) break;  // somebody else stored the same chunk; ours is dropped
    if (there.status != FileStatus::kNotFound || attempt == kNameAttempts) return there;
  }
  const int synced = options_.durability == Durability::kFull ? root_.SyncFolders(folder) : 0;
  return synced < 0 ? FileResult::IoError(-synced) : FileResult{};
}

FileResult ChunkWriter::GiveNameInFolder(const std::string& folder, const std::string& name,
                                         bool* taken) {
  int renamed = -ENOENT;
  for (int attempt = 0; attempt < kFolderAttempts && renamed == -ENOENT; ++attempt) {
    const int made = root_.MakeFolder(folder);
    if (made < 0 && made != -ENOENT) return FileResult::IoError(-made);
    if (made < 0) continue;  // an evictor removed it between mkdir and open
    const UniqueFd folder_fd(made);
    renamed = GiveFinalName(made, name);
  }
  *taken = renamed == -EEXIST;
  if (renamed < 0 && !*taken) return FileResult::IoError(-renamed);
  if (!*taken) temp_name_.clear();
  return {};
}

// Returns 0, or -errno; -EEXIST if the name is taken. After success the temp name is gone.
int ChunkWriter::GiveFinalName(int folder, const std::string& name) {
  const int renamed =
      root_.ops().RenameNoReplace(temp_folder_.get(), temp_name_.c_str(), folder, name.c_str());
  switch (renamed) {
    case -EINVAL:  // the file system does not know the flag
    case -ENOSYS:
    case -EOPNOTSUPP:
      return LinkOrRename(folder, name);
    default:
      return renamed;
  }
}

int ChunkWriter::LinkOrRename(int folder, const std::string& name) {
  FileOps& ops = root_.ops();
  const int linked = ops.LinkAt(temp_folder_.get(), temp_name_.c_str(), folder, name.c_str());
  if (linked >= 0) {
    ops.UnlinkAt(temp_folder_.get(), temp_name_.c_str());
    return 0;
  }
  if (linked == -EEXIST || linked == -ENOENT) return linked;
  const bool no_links = linked == -EPERM || linked == -EOPNOTSUPP || linked == -ENOSYS ||
                        linked == -EMLINK || linked == -EINVAL || linked == -EXDEV;
  if (!no_links) return linked;
  struct stat existing{};
  const int found = ops.StatAt(folder, name.c_str(), &existing);
  if (found >= 0) return -EEXIST;
  if (found != -ENOENT) return found;
  return ops.Rename(temp_folder_.get(), temp_name_.c_str(), folder, name.c_str());
}

void ChunkWriter::RemoveTemp() {
  if (temp_name_.empty()) return;
  root_.ops().UnlinkAt(temp_folder_.get(), temp_name_.c_str());
  temp_name_.clear();
}

void ChunkWriter::Leak() {
  temp_name_.clear();
  temp_folder_.Release();
  file_.Release();
}

}  // namespace kvshelf
