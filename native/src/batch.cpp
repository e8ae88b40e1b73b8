#include "batch.h"

#include <stdexcept>

namespace kvshelf {
namespace {

[[noreturn]] void Refuse(std::size_t row, const std::string& what) {
  throw std::invalid_argument("row " + std::to_string(row) + ": " + what);
}

std::int32_t At(std::span<const std::int32_t> column, std::size_t row) { return column[row]; }

void CheckRow(const EngineBasis& basis, JobKind kind, const Batch& batch, std::size_t row) {
  CheckPath(row, batch.paths[row]);
  if (kind == JobKind::kStore && batch.paths[row].find('/') == std::string::npos) {
    Refuse(row, "path of a store needs a namespace folder");
  }
  CheckKey(row, batch.keys[row]);
  const std::int32_t group = At(batch.groups, row);
  if (group < 0 || static_cast<std::size_t>(group) >= basis.groups.size()) {
    Refuse(row, "group " + std::to_string(group) + " is out of range");
  }
  const std::int32_t first = At(batch.first_blocks, row);
  const std::int32_t count = At(batch.block_counts, row);
  if (first < 0) Refuse(row, "first block is negative");
  if (count < 1) Refuse(row, "block count must be at least 1");
  const std::uint64_t block_bytes = basis.groups[static_cast<std::size_t>(group)].block_bytes();
  const std::uint64_t piece_bytes =
      PieceBytesFor(block_bytes, static_cast<std::uint32_t>(basis.config.piece_bytes));
  const std::uint64_t pieces_max = PieceCountMax(kPlainVersion, basis.auth_key.has_value());
  if (kind == JobKind::kStore &&
      static_cast<std::uint64_t>(count) > pieces_max * piece_bytes / block_bytes) {
    Refuse(row, "needs more than " + std::to_string(pieces_max) +
                    " pieces; piece_bytes is too small for such chunks");
  }
}

void CheckBatch(const EngineBasis& basis, JobKind kind, const Batch& batch) {
  const std::size_t rows = batch.paths.size();
  if (rows == 0) throw std::invalid_argument("a batch needs at least one row");
  if (batch.keys.size() != rows || batch.groups.size() != rows ||
      batch.first_blocks.size() != rows || batch.block_counts.size() != rows) {
    throw std::invalid_argument("columns have different lengths");
  }
  std::uint64_t next_id = 0;
  for (std::size_t row = 0; row < rows; ++row) {
    CheckRow(basis, kind, batch, row);
    const auto count = static_cast<std::uint64_t>(batch.block_counts[row]);
    // At once: a count further down may be negative and make the sum right again.
    if (count > batch.block_ids.size() - next_id) {
      Refuse(row, "block_counts add up to more than block_ids has");
    }
    const auto num_blocks = static_cast<std::int64_t>(
        basis.groups[static_cast<std::size_t>(batch.groups[row])].num_blocks());
    for (const std::int32_t id : batch.block_ids.subspan(next_id, count)) {
      if (id < 0 || id >= num_blocks) {
        Refuse(row, "block id " + std::to_string(id) + " is out of range");
      }
    }
    next_id += count;
  }
  if (next_id != batch.block_ids.size()) {
    throw std::invalid_argument("block_ids has " + std::to_string(batch.block_ids.size()) +
                                " entries, block_counts add up to " + std::to_string(next_id));
  }
}

}  // namespace

void CheckPath(std::size_t row, const std::string& path) {
  const std::string_view wrong = WhatIsWrongWithPath(path);
  if (!wrong.empty()) Refuse(row, "path " + std::string(wrong));
}

void CheckKey(std::size_t row, const std::string& key) {
  if (key.size() >= kKeyBytesMin && key.size() <= kKeyBytesMax) return;
  Refuse(row, "key must have 12 to 128 bytes, not " + std::to_string(key.size()));
}

std::shared_ptr<Job> MakeTransferJob(const EngineBasis& basis, JobKind kind, JobId id,
                                     const Batch& batch) {
  CheckBatch(basis, kind, batch);
  auto job = std::make_shared<Job>(kind, id, batch.paths.size());
  job->block_ids.assign(batch.block_ids.begin(), batch.block_ids.end());
  std::size_t next_id = 0;
  for (std::size_t row = 0; row < job->transfers.size(); ++row) {
    Transfer& file = job->transfers[row];
    const auto count = static_cast<std::size_t>(batch.block_counts[row]);
    file.job = job.get();
    file.index = row;
    file.group = static_cast<std::uint32_t>(batch.groups[row]);
    file.request.path = batch.paths[row];
    file.request.key = batch.keys[row];
    file.request.memory = &basis.groups[file.group];
    file.request.first_block = static_cast<std::uint32_t>(batch.first_blocks[row]);
    file.request.block_ids = std::span(job->block_ids).subspan(next_id, count);
    next_id += count;
  }
  job->after = basis.device->RecordEvent(batch.stream);
  return job;
}

}  // namespace kvshelf
