#include "kvshelf/chunk_verifier.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

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
  at_ = bytes_read_ = 0;
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
  const auto& header = *reinterpret_cast<const ChunkHeader*>(page_.data());
  if (!HeaderIsSound(header)) return Judge(Verdict::kCorrupt, "the header is damaged");
  if (header.version != kFormatVersion) {
    return Judge(Verdict::kVersion, "format version " + std::to_string(header.version));
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
  const std::uint64_t bytes =
      std::min<std::uint64_t>(buffer_.size(), file_bytes_ - kPageBytes - at_);
  return !Read(bytes, kPageBytes + at_) || Check(buffer_.data(), bytes);
}

bool ChunkVerifier::Check(const std::byte* data, std::uint64_t bytes) {
  const auto& header = *reinterpret_cast<const ChunkHeader*>(page_.data());
  const std::byte* const end = data + bytes;
  while (data < end) {
    const std::uint64_t piece = at_ / header.piece_bytes;
    const std::uint64_t piece_end =
        std::min((piece + 1) * header.piece_bytes, header.payload_bytes);
    const auto part = std::min(static_cast<std::uint64_t>(end - data), piece_end - at_);
    coder_->Update(data, part);
    at_ += part;
    data += part;
    if (at_ < piece_end) continue;
    Tag code;
    if (!coder_->End(&code) || code != PieceCode(header, piece)) {
      return Judge(Verdict::kCorrupt, "piece " + std::to_string(piece) + " of " +
                                          std::to_string(header.piece_count) + " is damaged");
    }
    coder_->Begin(static_cast<std::uint32_t>(piece + 1));
    if (at_ == header.payload_bytes) {
      const bool zero = std::all_of(data, end, [](std::byte each) { return each == std::byte{0}; });
      return zero ? Judge(Verdict::kSound, "")
                  : Judge(Verdict::kPadding, "the bytes behind the payload are not zero");
    }
  }
  return false;
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
