// The few functions of the CUDA driver that kvshelf calls, found at run time.
//
// No CUDA header is needed to build and no CUDA library to start: `libcuda.so.1` is opened with
// dlopen, or the library that KVSHELF_LIBCUDA names (the tests build one of our own). Declarations
// follow NVIDIA's CUDA driver API reference; types are declared here as far as they are used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace kvshelf::cuda {

using Result = int;  // CUresult
using Device = int;  // CUdevice
using Context = struct ContextHandle*;
using Stream = struct StreamHandle*;
using Event = struct EventHandle*;
using Module = struct ModuleHandle*;
using Function = struct FunctionHandle*;
using DevicePtr = std::uint64_t;  // CUdeviceptr on 64-bit hosts

inline constexpr Result kSuccess = 0;
inline constexpr unsigned kEventDisableTiming = 0x2;  // CU_EVENT_DISABLE_TIMING
inline constexpr unsigned kStreamNonBlocking = 0x1;   // CU_STREAM_NON_BLOCKING
inline constexpr unsigned kHostRegisterPortable = 1;  // CU_MEMHOSTREGISTER_PORTABLE
inline constexpr unsigned kSrcAccessOrderStream = 1;  // CU_MEMCPY_SRC_ACCESS_ORDER_STREAM
inline constexpr unsigned kOverlapWithCompute = 0x1;  // CU_MEMCPY_FLAG_PREFER_OVERLAP_WITH_COMPUTE

// CUmemLocation and CUmemcpyAttributes: hints are left zero, they matter for managed memory only.
struct MemLocation {
  unsigned type = 0;
  int id = 0;
};
struct MemcpyAttributes {
  unsigned src_access_order = kSrcAccessOrderStream;
  MemLocation src_hint;
  MemLocation dst_hint;
  unsigned flags = 0;
};

static_assert(sizeof(MemcpyAttributes) == 24);

// What copies by a kernel need; any may be null in an old or foreign driver.
struct PageFunctions {
  Result (*module_load_data)(Module* module, const void* image) = nullptr;
  Result (*module_unload)(Module module) = nullptr;
  Result (*module_get_function)(Function* function, Module module, const char* name) = nullptr;
  Result (*launch_kernel)(Function function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                          unsigned block_x, unsigned block_y, unsigned block_z,
                          unsigned shared_bytes, Stream stream, void** parameters,
                          void** extra) = nullptr;
  Result (*mem_alloc)(DevicePtr* memory, std::size_t bytes) = nullptr;
  Result (*mem_free)(DevicePtr memory) = nullptr;

  [[nodiscard]] bool complete() const {
    return module_load_data != nullptr && module_unload != nullptr &&
           module_get_function != nullptr && launch_kernel != nullptr && mem_alloc != nullptr &&
           mem_free != nullptr;
  }
};

// The driver's functions. Thread-safe, as the driver's own are. Every pointer is set, but for the
// two batch copies: at most one of them is (12.8 and 12.9: batch_v1; 13.0 and later: batch_v2).
struct Driver {
  Result (*init)(unsigned flags) = nullptr;
  Result (*driver_get_version)(int* version) = nullptr;
  Result (*device_get)(Device* device, int ordinal) = nullptr;
  Result (*primary_ctx_retain)(Context* context, Device device) = nullptr;
  Result (*primary_ctx_release)(Device device) = nullptr;
  Result (*ctx_set_current)(Context context) = nullptr;
  Result (*stream_create)(Stream* stream, unsigned flags) = nullptr;
  Result (*stream_destroy)(Stream stream) = nullptr;
  Result (*stream_wait_event)(Stream stream, Event event, unsigned flags) = nullptr;
  Result (*stream_synchronize)(Stream stream) = nullptr;
  Result (*event_create)(Event* event, unsigned flags) = nullptr;
  Result (*event_destroy)(Event event) = nullptr;
  Result (*event_record)(Event event, Stream stream) = nullptr;
  Result (*event_synchronize)(Event event) = nullptr;
  Result (*mem_host_register)(void* memory, std::size_t bytes, unsigned flags) = nullptr;
  Result (*mem_host_unregister)(void* memory) = nullptr;
  Result (*memcpy_async)(DevicePtr dst, DevicePtr src, std::size_t bytes, Stream stream) = nullptr;
  Result (*get_error_name)(Result error, const char** name) = nullptr;
  Result (*batch_v1)(DevicePtr* dsts, DevicePtr* srcs, std::size_t* sizes, std::size_t count,
                     MemcpyAttributes* attributes, std::size_t* attribute_indices,
                     std::size_t attribute_count, std::size_t* fail_index, Stream stream) = nullptr;
  Result (*batch_v2)(DevicePtr* dsts, DevicePtr* srcs, std::size_t* sizes, std::size_t count,
                     MemcpyAttributes* attributes, std::size_t* attribute_indices,
                     std::size_t attribute_count, Stream stream) = nullptr;
  PageFunctions pages;

  // "CUDA_ERROR_..." for messages; "error N" where the driver does not know it.
  [[nodiscard]] std::string ErrorName(Result error) const;
};

// Opens `library` (empty: KVSHELF_LIBCUDA, else libcuda.so.1) and initializes the driver. The
// library stays open for the process's life: threads of the driver may outlive any owner.
// Throws std::runtime_error that names the library and what is missing.
[[nodiscard]] std::shared_ptr<const Driver> OpenDriver(const std::string& library);

}  // namespace kvshelf::cuda
