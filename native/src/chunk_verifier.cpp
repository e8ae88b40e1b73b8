#include "kvshelf/chunk_verifier.h"

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "kvshelf/crc64.h"

namespace kvshelf {

ChunkVerifier::ChunkVerifier(std::size_t step_bytes)
    : buffer_(AllocateAligned(RoundUpToPage(step_bytes))), page_(AllocateAligned(kPageBytes)) {}

bool ChunkVerifier::Begin(int fd, std::uint64_t file_bytes, const ExpectedChunk& expected) {
  fd_ = fd;
  file_bytes_ = file_bytes;
  at_ = crc_ = bytes_read_ = 0;
  verdict_ = Verdict::kSound;
  error_ = 0;
  reason_.clear();
  direct_ = (::fcntl(fd, F_GETFL) & O_DIRECT) != 0;
  // Buffered reads must not bring in more than they ask for, see ReadSome.
  if (!direct_) ::posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
  if (file_bytes < kPageBytes) return Judge(Verdict::kCorrupt, "shorter than a header");
  return !Read(page_.data(), kPageBytes, 0) || CheckHeader(expected);
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
  return false;
}

bool ChunkVerifier::Step() {
  const auto& header = *reinterpret_cast<const ChunkHeader*>(page_.data());
  const std::uint64_t piece = at_ / header.piece_bytes;
  const std::uint64_t piece_end = std::min((piece + 1) * header.piece_bytes, header.payload_bytes);
  const std::uint64_t bytes = std::min<std::uint64_t>(buffer_.size(), piece_end - at_);
  // To the end of a page: O_DIRECT wants that, and what follows the payload is padding.
  const std::uint64_t with_padding = RoundUpToPage(bytes);
  if (!Read(buffer_.data(), with_padding, kPageBytes + at_)) return true;
  crc_ = Crc64(crc_, buffer_.data(), bytes);
  at_ += bytes;
  if (at_ < piece_end) return false;
  if (crc_ != header.piece_checksums[piece]) {
    return Judge(Verdict::kCorrupt, "piece " + std::to_string(piece) + " of " +
                                        std::to_string(header.piece_count) + " is damaged");
  }
  crc_ = 0;
  if (at_ < header.payload_bytes) return false;
  const bool zero = std::all_of(buffer_.data() + bytes, buffer_.data() + with_padding,
                                [](std::byte each) { return each == std::byte{0}; });
  return zero ? Judge(Verdict::kSound, "")
              : Judge(Verdict::kPadding, "the bytes behind the payload are not zero");
}

bool ChunkVerifier::Judge(Verdict verdict, std::string reason) {
  verdict_ = verdict;
  reason_ = std::move(reason);
  return true;
}

bool ChunkVerifier::Read(std::byte* data, std::uint64_t bytes, std::uint64_t offset) {
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

// Bytes, or -errno. O_DIRECT reads past the page cache. Without it, what is in the cache already
// is taken from there and stays (RWF_NOWAIT); what is not is dropped again once it was read.
std::int64_t ChunkVerifier::ReadSome(std::byte* data, std::uint64_t bytes, std::uint64_t offset) {
  const auto at = static_cast<off_t>(offset);
  const iovec part{data, bytes};
  for (;;) {
    ssize_t got = direct_ ? -1 : ::preadv2(fd_, &part, 1, at, RWF_NOWAIT);
    if (got > 0) return got;
    got = ::pread(fd_, data, bytes, at);
    if (got > 0 && !direct_) {
      ::posix_fadvise(fd_, at, static_cast<off_t>(got), POSIX_FADV_DONTNEED);
    }
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
