#include "kvshelf/memory.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <new>
#include <stdexcept>

#include "kvshelf/dcheck.h"

namespace kvshelf {

UniqueFd::~UniqueFd() { Reset(); }

void UniqueFd::Reset() {
  // The result is ignored: Linux closes the descriptor whatever close() returns, and data that
  // must be durable was synced before.
  if (fd_ >= 0) ::close(std::exchange(fd_, -1));
}

StagingBuffer AllocateAligned(std::size_t bytes) {
  void* data = nullptr;
  if (::posix_memalign(&data, 4096, std::max<std::size_t>(bytes, 1)) != 0) throw std::bad_alloc();
  return StagingBuffer(static_cast<std::byte*>(data), bytes,
                       [](std::byte* memory, std::size_t) { std::free(memory); });
}

GroupMemory::GroupMemory(std::vector<Pages> pages, std::uint32_t num_blocks, std::uint64_t geometry)
    : pages_(std::move(pages)), num_blocks_(num_blocks), geometry_(geometry) {
  if (pages_.empty()) throw std::invalid_argument("a group needs at least one layer");
  std::uint64_t end = 0;
  for (const Pages& page : pages_) {
    if (page.page_bytes == 0 || page.page_bytes > (std::uint64_t{1} << 40)) {
      throw std::invalid_argument("page_bytes is out of range");
    }
    if (page.stride_bytes < page.page_bytes) {
      throw std::invalid_argument("stride_bytes is smaller than page_bytes");
    }
    end += page.page_bytes;
    page_ends_.push_back(end);
  }
}

void GroupMemory::Map(std::span<const std::int32_t> ids, std::uint64_t begin, std::uint64_t end,
                      std::vector<Segment>& segments) const {
  KVSHELF_DCHECK(begin <= end && end <= ids.size() * block_bytes());
  segments.clear();
  std::size_t block = begin / block_bytes();
  std::uint64_t within = begin % block_bytes();
  std::size_t page = static_cast<std::size_t>(
      std::upper_bound(page_ends_.begin(), page_ends_.end(), within) - page_ends_.begin());
  std::uint64_t left = end - begin;
  while (left > 0) {
    const Pages& pages = pages_[page];
    const std::uint64_t start = page_ends_[page] - pages.page_bytes;
    const std::uint64_t bytes = std::min(left, page_ends_[page] - within);
    std::byte* data =
        pages.base + static_cast<std::uint64_t>(ids[block]) * pages.stride_bytes + (within - start);
    if (!segments.empty() && segments.back().data + segments.back().bytes == data) {
      segments.back().bytes += bytes;
    } else {
      segments.push_back({data, bytes});
    }
    left -= bytes;
    within += bytes;
    if (within == page_ends_[page] && ++page == pages_.size()) {
      page = 0;
      within = 0;
      ++block;
    }
  }
}

}  // namespace kvshelf
