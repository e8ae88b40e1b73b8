// What callers hand in: checked, and made a job.
#pragma once

#include <memory>
#include <string>

#include "engine_basis.h"
#include "job.h"

namespace kvshelf {

// Throw std::invalid_argument, which names the row: if the path is not that of a file beneath, or
// the key has not 12 to 128 bytes.
void CheckPath(std::size_t row, const std::string& path);
void CheckKey(std::size_t row, const std::string& key);

// Throws std::invalid_argument, which names the row, if `batch` cannot be stored or loaded.
void CheckBatch(const EngineBasis& basis, JobKind kind, const Batch& batch);
// REQUIRES: it was checked.
std::shared_ptr<Job> MakeTransferJob(const EngineBasis& basis, JobKind kind, JobId id,
                                     const Batch& batch);

}  // namespace kvshelf
