// Block memory on an NVIDIA GPU: copies by the DMA engines, none by the compute cores.
#pragma once

#include <memory>
#include <string>

#include "kvshelf/device.h"

namespace kvshelf {

// How the segments of one copy are handed to the driver.
enum class CopyMethod {
  kAuto,    // kBatch where the driver has it, else kSingle
  kBatch,   // one cuMemcpyBatchAsync for all segments
  kSingle,  // one cuMemcpyAsync a segment
};

// Opens the driver (`library` as in cuda::OpenDriver) and retains the primary context of `ordinal`,
// the one that torch uses. Throws std::runtime_error with the driver's own words.
std::shared_ptr<Device> MakeCudaDevice(int ordinal, const std::string& library, CopyMethod method);

}  // namespace kvshelf
