#include "kvshelf/chunk_verifier.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "kvshelf/bf16_pack.h"

namespace kvshelf {
namespace {

// Pages of a file that are not in the page cache, dropped from it at the end of a scope. mincore(2)
// says that all pages are there to whoever may not write to the file: then none is dropped.
class PagesToDrop {
 public:
  // REQUIRES: `offset` is a multiple of the page size. Does nothing for fd -1.
  PagesToDrop(int fd, std::uint64_t offset, std::uint64_t bytes) : fd_(fd), offset_(offset) {
    if (fd < 0) return;
    void* const map = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, static_cast<off_t>(offset));
    if (map == MAP_FAILED) return;
    cached_.resize((bytes + kPageBytes - 1) / kPageBytes);
    if (::mincore(map, bytes, cached_.data()) != 0) cached_.clear();
    ::munmap(map, bytes);
  }
  ~PagesToDrop() {
    const int saved = errno;
    // In runs: a part of a large folio is not dropped.
    for (auto begin = cached_.begin(); begin != cached_.end();) {
      begin = std::find_if(begin, cached_.end(), [](auto page) { return (page & 1) == 0; });
      const auto end =
          std::find_if(begin, cached_.end(), [](auto page) { return (page & 1) != 0; });
      if (begin != end) {
        const auto first = static_cast<std::uint64_t>(begin - cached_.begin());
        ::posix_fadvise(fd_, static_cast<off_t>(offset_ + first * kPageBytes),
                        (end - begin) * static_cast<off_t>(kPageBytes), POSIX_FADV_DONTNEED);
      }
      begin = end;
    }
    errno = saved;
  }
  PagesToDrop(const PagesToDrop&) = delete;
  PagesToDrop& operator=(const PagesToDrop&) = delete;

 private:
  int fd_;
  std::uint64_t offset_;
  std::vector<unsigned char> cached_;
};

}  // namespace

ChunkVerifier::ChunkVerifier(std::size_t step_bytes, const std::string& auth_key)
    : key_(auth_key.empty() ? std::nullopt : std::make_optional<AuthKey>(auth_key)),
      buffer_(AllocateAligned(RoundUpToPage(step_bytes))),
      page_(AllocateAligned(kPageBytes)) {}

bool ChunkVerifier::Begin(int fd, std::uint64_t file_bytes, const ExpectedChunk& expected) {
  fd_ = fd;
  file_bytes_ = file_bytes;
  bytes_read_ = in_piece_ = piece_ = 0;
  padding_is_zero_ = true;
  coder_.reset();
  verdict_ = Verdict::kSound;
  error_ = 0;
  reason_.clear();
  direct_ = (::fcntl(fd, F_GETFL) & O_DIRECT) != 0;
  // Buffered reads must not bring in more than they ask for, see ReadSome.
  if (!direct_) ::posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
  if (file_bytes < kPageBytes) return Judge(Verdict::kCorrupt, "shorter than a header");
  // The header and what follows in one read: of a small file that is all.
  const std::uint64_t bytes =
      std::min<std::uint64_t>(buffer_.size(), file_bytes & ~(kPageBytes - 1));
  if (!Read(bytes, 0)) return true;
  std::memcpy(page_.data(), buffer_.data(), kPageBytes);
  return CheckHeader(expected) || Check(buffer_.data() + kPageBytes, bytes - kPageBytes);
}

bool ChunkVerifier::CheckHeader(const ExpectedChunk& expected) {
  const ChunkHeader& header = this->header();
  if (!HeaderIsSound(header)) return Judge(Verdict::kCorrupt, "the header is damaged");
  if (!HeaderIsKnown(header)) {
    std::string what = "format version " + std::to_string(header.version);
    if (header.version == kPackedVersion) what += ", packing " + std::to_string(header.packing);
    return Judge(Verdict::kVersion, std::move(what));
  }
  if (std::memcmp(header.namespace_digest.data(), expected.namespace_start.data(),
                  expected.namespace_start.size()) != 0) {
    return Judge(Verdict::kMisplaced, "its header says another namespace");
  }
  if (header.rank != expected.rank) {
    return Judge(Verdict::kMisplaced, "its header says rank " + std::to_string(header.rank));
  }
  if (header.key_bytes != expected.key.size() || header.key_bytes > kKeyBytesMax ||
      std::memcmp(header.key.data(), expected.key.data(), header.key_bytes) != 0) {
    return Judge(Verdict::kMisplaced, "its header says another key");
  }
  if (!SizesAgree(header, file_bytes_)) {
    return Judge(Verdict::kCorrupt, "its size is not the one that its header says");
  }
  const bool tagged = header.authentication == kGmac;
  if (!tagged && header.authentication != kNotAuthenticated) {
    return Judge(Verdict::kVersion, "tags of a kind that is not known");
  }
  if (tagged != expected.authenticated.value_or(tagged)) {
    return Judge(Verdict::kMisplaced, tagged ? "it has tags" : "it carries no tags");
  }
  if (tagged && !(expected.use_key && key_)) return Judge(Verdict::kSealed, "");
  coder_.emplace(tagged ? &*key_ : nullptr, header.salt);
  if (!HeaderIsAuthentic(header, *coder_)) {
    return Judge(Verdict::kMisplaced, "its header was not made with the key");
  }
  coder_->Begin(0);
  return false;
}

bool ChunkVerifier::Step() {
  // To the end of a page: O_DIRECT wants that, and what follows the payload is padding.
  const std::uint64_t bytes = std::min<std::uint64_t>(buffer_.size(), file_bytes_ - bytes_read_);
  return !Read(bytes, bytes_read_) || Check(buffer_.data(), bytes);
}

bool ChunkVerifier::Check(const std::byte* data, std::uint64_t bytes) {
  for (const std::byte* const end = data + bytes; data < end;) {
    const std::uint64_t stored = StoredBytes(header(), piece_);
    const bool in_padding = in_piece_ >= stored;
    const std::uint64_t part_end = in_padding ? RoundUpToPage(stored) : stored;
    const auto part = std::min(static_cast<std::uint64_t>(end - data), part_end - in_piece_);
    if (in_padding) {
      padding_is_zero_ = padding_is_zero_ && std::all_of(data, data + part, [](std::byte each) {
                           return each == std::byte{0};
                         });
    } else {
      coder_->Update(data, part);
      if (stored < PlainBytes(header(), piece_)) packed_.insert(packed_.end(), data, data + part);
    }
    data += part;
    in_piece_ += part;
    if (in_piece_ == stored && !EndPiece()) return true;
    if (in_piece_ < RoundUpToPage(stored)) continue;
    in_piece_ = 0;
    if (++piece_ < header().piece_count) continue;
    return padding_is_zero_ ? Judge(Verdict::kSound, "")
                            : Judge(Verdict::kPadding, "the bytes behind a piece are not zero");
  }
  return false;
}

// Whether the piece is right, which then ends before its padding.
bool ChunkVerifier::EndPiece() {
  Tag code;
  bool is_right = coder_->End(&code) && code == PieceCode(header(), piece_);
  coder_->Begin(static_cast<std::uint32_t>(piece_ + 1));
  if (is_right && !packed_.empty()) {
    const std::uint64_t plain = PlainBytes(header(), piece_);
    std::vector<std::uint16_t> values(plain / sizeof(std::uint16_t));
    is_right =
        plain % sizeof(std::uint16_t) == 0 &&
        UnpackBf16({reinterpret_cast<const std::uint8_t*>(packed_.data()), packed_.size()}, values);
  }
  packed_.clear();
  return is_right ||
         !Judge(Verdict::kCorrupt, "piece " + std::to_string(piece_) + " of " +
                                       std::to_string(header().piece_count) + " is damaged");
}

bool ChunkVerifier::Judge(Verdict verdict, std::string reason) {
  verdict_ = verdict;
  reason_ = std::move(reason);
  return true;
}

bool ChunkVerifier::Read(std::uint64_t bytes, std::uint64_t offset) {
  std::byte* const data = buffer_.data();
  for (std::uint64_t done = 0; done < bytes;) {
    const std::int64_t got = ReadSome(data + done, bytes - done, offset + done);
    if (got == 0) return !Judge(Verdict::kCorrupt, "it ends early");
    if (got < 0) {
      error_ = static_cast<int>(-got);
      return !Judge(Verdict::kFault, std::strerror(error_));
    }
    bytes_read_ += static_cast<std::uint64_t>(got);
    done += static_cast<std::uint64_t>(got);
  }
  return true;
}

// Bytes, or -errno. O_DIRECT reads past the page cache. Without it, pages that were not in the
// cache are dropped from it once they were read, and those that were stay.
std::int64_t ChunkVerifier::ReadSome(std::byte* data, std::uint64_t bytes, std::uint64_t offset) {
  for (;;) {
    const PagesToDrop pages(direct_ ? -1 : fd_, offset, bytes);
    const ssize_t got = ::pread(fd_, data, bytes, static_cast<off_t>(offset));
    if (got >= 0) return got;
    if (errno == EINVAL && direct_) {
      direct_ = false;
      const int flags = ::fcntl(fd_, F_GETFL);
      if (flags < 0 || ::fcntl(fd_, F_SETFL, flags & ~O_DIRECT) < 0) return -EINVAL;
      ::posix_fadvise(fd_, 0, 0, POSIX_FADV_RANDOM);
    } else if (errno != EINTR) {
      return -errno;
    }
  }
}

}  // namespace kvshelf
