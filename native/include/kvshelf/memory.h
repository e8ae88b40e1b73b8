// Owners of raw resources: file descriptors and aligned memory; and the shape of block memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <utility>
#include <vector>

namespace kvshelf {

class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  UniqueFd(const UniqueFd&) = delete;
  UniqueFd& operator=(const UniqueFd&) = delete;
  ~UniqueFd();

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  void Reset();
  // Gives up ownership; the caller closes it, or leaves it open on purpose.
  int Release() { return std::exchange(fd_, -1); }

 private:
  int fd_ = -1;
};

// Page-aligned staging memory, freed by whoever allocated it (a device may pin it).
class StagingBuffer {
 public:
  using Free = std::function<void(std::byte* data, std::size_t bytes)>;

  StagingBuffer() = default;
  StagingBuffer(std::byte* data, std::size_t bytes, Free free)
      : data_(data), bytes_(bytes), free_(std::move(free)) {}
  StagingBuffer(StagingBuffer&& other) noexcept { *this = std::move(other); }
  StagingBuffer& operator=(StagingBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(free_, other.free_);
    return *this;
  }
  StagingBuffer(const StagingBuffer&) = delete;
  StagingBuffer& operator=(const StagingBuffer&) = delete;
  ~StagingBuffer() {
    if (data_ != nullptr) free_(data_, bytes_);
  }

  std::byte* data() const { return data_; }
  std::size_t size() const { return bytes_; }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
  Free free_;
};

// Ordinary memory aligned to 4096 bytes. Throws std::bad_alloc.
StagingBuffer AllocateAligned(std::size_t bytes);

// A contiguous part of block memory.
struct Segment {
  std::byte* data;
  std::size_t bytes;
};

// One layer's pages: block i lies at base + i * stride_bytes.
struct Pages {
  std::byte* base;
  std::uint64_t stride_bytes;
  std::uint64_t page_bytes;
};

// The block memory of one KV cache group. Immutable; does not own the memory it describes.
class GroupMemory {
 public:
  // Throws std::invalid_argument for no pages, an empty page or a stride that makes pages overlap.
  GroupMemory(std::vector<Pages> pages, std::uint32_t num_blocks, std::uint64_t geometry);

  std::uint32_t num_blocks() const { return num_blocks_; }
  std::uint64_t block_bytes() const { return page_ends_.back(); }
  std::uint64_t geometry() const { return geometry_; }

  // Replaces `segments` by the memory of bytes [begin, end) of the payload made of blocks `ids`.
  // REQUIRES: end <= ids.size() * block_bytes(); ids are below num_blocks().
  void Map(std::span<const std::int32_t> ids, std::uint64_t begin, std::uint64_t end,
           std::vector<Segment>& segments) const;

 private:
  std::vector<Pages> pages_;
  std::vector<std::uint64_t> page_ends_;  // offset of the end of page i within a block
  std::uint32_t num_blocks_;
  std::uint64_t geometry_;
};

}  // namespace kvshelf
