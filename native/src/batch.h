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

// A store or a load, whose copies come after what is queued on the batch's stream now. Throws
// likewise if `batch` cannot be stored or loaded.
std::shared_ptr<Job> MakeTransferJob(const EngineBasis& basis, JobKind kind, JobId id,
                                     const Batch& batch);

}  // namespace kvshelf
