#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <new>

#include "kvshelf/chunk_io.h"
#include "kvshelf/dcheck.h"

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

// The volume's or the owner's room, or the longest file, is used up.
bool IsFull(int error) { return error == ENOSPC || error == EDQUOT || error == EFBIG; }

iovec Part(const std::byte* data, std::uint64_t bytes) {
  return {const_cast<std::byte*>(data), bytes};
}

void Keep(const StagingBuffer& whole, const std::byte* data, std::uint64_t bytes,
          std::uint64_t at) {
  KVSHELF_DCHECK(at + bytes <= whole.size());
  std::memcpy(whole.data() + at, data, bytes);
}

FileResult WriteFully(FileOps& ops, const UniqueFd& file, std::span<iovec> parts,
                      std::uint64_t offset) {
  while (!parts.empty()) {
    const ssize_t result = ops.Pwritev(file.get(), parts, static_cast<off_t>(offset));
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

int LinkOrRename(RootDir& root, int temp_folder, const std::string& temp_name, int folder,
                 const std::string& name) {
  FileOps& ops = root.ops();
  RootHabits& habits = root.habits();
  const int linked = ops.LinkAt(temp_folder, temp_name.c_str(), folder, name.c_str());
  habits.link_error = linked < 0 ? -linked : 0;
  if (linked >= 0) {
    habits.naming = Naming::kLink;
    ops.UnlinkAt(temp_folder, temp_name.c_str());
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
  const int renamed = ops.Rename(temp_folder, temp_name.c_str(), folder, name.c_str());
  if (renamed >= 0) habits.naming = Naming::kRename;
  return renamed;
}

// Returns 0, or -errno; -EEXIST if the name is taken. After success the temp name is gone.
int GiveFinalName(RootDir& root, int temp_folder, const std::string& temp_name, int folder,
                  const std::string& name) {
  const int renamed =
      root.ops().RenameNoReplace(temp_folder, temp_name.c_str(), folder, name.c_str());
  RootHabits& habits = root.habits();
  habits.rename_error = renamed < 0 ? -renamed : 0;
  switch (renamed) {
    case -EINVAL:  // the file system does not know the flag
    case -ENOSYS:
    case -EOPNOTSUPP:
    case -EPERM:
    case -ENOTTY:
      return LinkOrRename(root, temp_folder, temp_name, folder, name);
    default:
      if (renamed >= 0) habits.naming = Naming::kRenameNoReplace;
      return renamed;
  }
}

}  // namespace

ChunkWriter::ChunkWriter(RootDir& root, const ChunkIoOptions& options,
                         const ChunkIdentity& identity, const ChunkRequest& request)
    : root_(root),
      options_(options),
      identity_(identity),
      request_(request),
      shape_(ShapeOf(options, identity, request.payload_bytes())),
      header_(MakeHeader(identity, request.first_block, request.block_count(), shape_.piece_bytes)),
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
  RootHabits& habits = root_.habits();
  if (habits.order == WriteOrder::kInOrder) {  // room that is reserved would lengthen the file
    return Reserve(whole_, FileBytes(header_)) ? FileResult{} : FileResult::IoError(ENOMEM);
  }
  // A full file system says so before any work is done, and ext4 writes a fifth faster into blocks
  // that it has allocated at once. Where it is not supported there is nothing lost. What is packed
  // takes three quarters at least; a file must not be longer than what is written.
  const std::uint64_t least =
      shape_.packs ? kPageBytes + RoundUpToPage(header_.payload_bytes / 4 * 3) : FileBytes(header_);
  const int allocated = root_.ops().Allocate(fd, static_cast<off_t>(least));
  habits.allocate_error = -allocated;
  const bool full = IsFull(-allocated);
  return full ? FileResult::IoError(-allocated) : FileResult{};
}

FileResult ChunkWriter::WriteStaged(std::byte* data, std::uint64_t bytes) {
  while (bytes > 0) {
    const std::uint64_t step =
        AlignedEnd(written_, options_.step_bytes, written_ + bytes) - written_;
    hasher_.Update(data, step);
    const FileResult result = WriteHashed(data, step);
    if (!result.ok()) return result;
    data += step;
    bytes -= step;
  }
  return {};
}

FileResult ChunkWriter::WriteHashed(std::byte* data, std::uint64_t bytes) {
  KVSHELF_DCHECK(!shape_.packs && written_ + bytes <= header_.payload_bytes);
  written_ += bytes;
  std::uint64_t write_bytes = bytes;
  if (written_ == header_.payload_bytes) {
    write_bytes = RoundUpToPage(bytes);
    std::memset(data + bytes, 0, write_bytes - bytes);
  }
  return Append(data, write_bytes);
}

FileResult ChunkWriter::WritePiece(std::byte* data, std::uint32_t stored_bytes,
                                   std::uint64_t payload_bytes) {
  hasher_.AddPiece(data, stored_bytes);
  return WritePieces(data, RoundUpToPage(stored_bytes), payload_bytes);
}

FileResult ChunkWriter::WritePieces(std::byte* data, std::uint64_t bytes,
                                    std::uint64_t payload_bytes) {
  KVSHELF_DCHECK(shape_.packs && bytes % kPageBytes == 0);
  KVSHELF_DCHECK(written_ + payload_bytes <= header_.payload_bytes);
  written_ += payload_bytes;
  return Append(data, bytes);
}

FileResult ChunkWriter::Append(std::byte* data, std::uint64_t bytes) {
  const std::uint64_t at = kPageBytes + offset_;
  offset_ += bytes;
  if (!whole_) {
    iovec part = Part(data, bytes);
    const FileResult result = WriteFully(root_.ops(), file_, {&part, 1}, at);
    if (result.ok() || !BeginsInOrder(result, at - kPageBytes)) return result;
  }
  Keep(whole_, data, bytes, at);
  return {};
}

// After a write was refused: whether the file was begun anew, to be written in order, with the
// first `kept` bytes of the payload, which had been written.
bool ChunkWriter::BeginsInOrder(const FileResult& refused, std::uint64_t kept) {
  if (IsFull(refused.error) || refused.error == ECANCELED) return false;
  root_.LearnWriteOrder(temp_folder_.get());
  if (root_.habits().order != WriteOrder::kInOrder || !Reserve(whole_, FileBytes(header_)))
    return false;
  FileOps& ops = root_.ops();
  ops.Close(file_.Release());  // some send only now what was written
  const UniqueFd copy(
      kept == 0 ? -1 : ops.OpenBeneath(temp_folder_.get(), temp_name_.c_str(), O_RDONLY, 0));
  for (std::uint64_t at = kPageBytes; at < kPageBytes + kept;) {
    const ssize_t read =
        ops.Pread(copy.get(), whole_.data() + at, kPageBytes + kept - at, static_cast<off_t>(at));
    if (read <= 0) {
      whole_ = {};
      return false;
    }
    at += static_cast<std::uint64_t>(read);
  }
  RemoveTemp();
  return CreateTemp().ok();
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
        if (whole_) Keep(whole_, segment.data, segment.bytes, kPageBytes + offset_);
        offset_ += segment.bytes;
        written_ += segment.bytes;
        KVSHELF_DCHECK(!shape_.packs && written_ <= header_.payload_bytes);
        context.parts.push_back(Part(segment.data, segment.bytes));
      }
      return true;
    });
    if (!hashed) return FileResult::IoError(ECANCELED);
    const std::uint64_t padding = RoundUpToPage(offset_) - offset_;
    if (offset_ == header_.payload_bytes && padding > 0) {
      context.parts.push_back(Part(kZeros.data(), padding));
    }
    if (!whole_) {
      const FileResult result = WriteFully(root_.ops(), file_, context.parts, at);
      if (!result.ok() && !BeginsInOrder(result, at - kPageBytes)) return result;
      const bool kept = result.ok() || gate.Run([&] {
        std::uint64_t to = at;
        for (const Segment& segment : part) {
          Keep(whole_, segment.data, segment.bytes, to);
          to += segment.bytes;
        }
        return true;
      });
      if (!kept) return FileResult::IoError(ECANCELED);
    }
    segments = segments.subspan(part.size());
  }
  return {};
}

// The header page; in order, the whole file.
FileResult ChunkWriter::WriteHeader(ThreadContext& context) {
  if (!whole_) {
    std::memcpy(context.page.data(), &header_, sizeof(header_));
    iovec part = Part(context.page.data(), kPageBytes);
    return WriteFully(root_.ops(), file_, {&part, 1}, 0);
  }
  std::memcpy(whole_.data(), &header_, sizeof(header_));
  const std::uint64_t file_bytes = FileBytes(header_);
  KVSHELF_DCHECK(kPageBytes + offset_ <= file_bytes && file_bytes <= whole_.size());
  std::memset(whole_.data() + kPageBytes + offset_, 0, file_bytes - kPageBytes - offset_);
  FileResult result;
  for (std::uint64_t at = 0; result.ok() && at < file_bytes; at += options_.step_bytes) {
    iovec part =
        Part(whole_.data() + at, std::min<std::uint64_t>(options_.step_bytes, file_bytes - at));
    result = WriteFully(root_.ops(), file_, {&part, 1}, at);
  }
  whole_ = {};
  return result;
}

FileResult ChunkWriter::Publish(CopyGate& gate, ThreadContext& context) {
  if (!hasher_.Seal(header_)) return FileResult::IoError(EIO);
  const bool had_whole = static_cast<bool>(whole_);
  FileResult written = WriteHeader(context);
  if (!written.ok() && !had_whole && BeginsInOrder(written, offset_)) {
    written = WriteHeader(context);
  }
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
  // What gets its name is whole.
  KVSHELF_DCHECK(written_ == header_.payload_bytes);
  KVSHELF_DCHECK(kPageBytes + RoundUpToPage(offset_) == FileBytes(header_));

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
    renamed = GiveFinalName(root_, temp_folder_.get(), temp_name_, made, name);
  }
  *taken = renamed == -EEXIST;
  if (renamed < 0 && !*taken) return FileResult::IoError(-renamed);
  if (!*taken) temp_name_.clear();
  return {};
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
