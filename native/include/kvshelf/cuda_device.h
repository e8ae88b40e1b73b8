// Block memory on an NVIDIA GPU: copies by the DMA engines; pages too small for them are gathered
// and scattered by a kernel.
#pragma once

#include <memory>
#include <string>

#include "kvshelf/device.h"

namespace kvshelf {

// How the segments of one copy are handed to the driver.
enum class CopyMethod {
  kAuto,    // small pages by a kernel where the GPU takes it, else kBatch where the driver has it
  kBatch,   // one cuMemcpyBatchAsync for all segments
  kSingle,  // one cuMemcpyAsync a segment
};

// Opens the driver (`library` as in cuda::OpenDriver) and retains the primary context of `ordinal`,
// the one that torch uses. `piece_bytes`: the largest copy, of which a kernel needs as much GPU
// memory four times. Throws std::runtime_error with the driver's own words.
std::shared_ptr<Device> MakeCudaDevice(int ordinal, const std::string& library, CopyMethod method,
                                       std::size_t piece_bytes);

}  // namespace kvshelf
