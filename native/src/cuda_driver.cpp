#include "cuda_driver.h"

#include <dlfcn.h>

#include <cstdlib>
#include <stdexcept>

namespace kvshelf::cuda {
namespace {

constexpr int kBatchV1Since = 12080;  // CUDA 12.8
constexpr int kBatchV2Since = 13000;  // CUDA 13.0: the fail index is gone

// cuGetProcAddress_v2: the only way to ask for one of two signatures of the same name.
using GetProcAddress = Result (*)(const char* symbol, void** function, int cuda_version,
                                  std::uint64_t flags, int* status);

template <typename Function>
void Bind(void* library, const std::string& name, const char* symbol, Function* function) {
  void* address = dlsym(library, symbol);
  if (address == nullptr) {
    throw std::runtime_error(name + " has no " + symbol);
  }
  *function = reinterpret_cast<Function>(address);
}

// For functions that kvshelf can do without.
template <typename Function>
void BindIfThere(void* library, const char* symbol, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, symbol));
}

void BindPages(void* library, PageFunctions* pages) {
  BindIfThere(library, "cuModuleLoadData", &pages->module_load_data);
  BindIfThere(library, "cuModuleUnload", &pages->module_unload);
  BindIfThere(library, "cuModuleGetFunction", &pages->module_get_function);
  BindIfThere(library, "cuLaunchKernel", &pages->launch_kernel);
  BindIfThere(library, "cuMemAlloc_v2", &pages->mem_alloc);
  BindIfThere(library, "cuMemFree_v2", &pages->mem_free);
}

void BindAll(void* library, const std::string& name, Driver* driver) {
  Bind(library, name, "cuInit", &driver->init);
  Bind(library, name, "cuDriverGetVersion", &driver->driver_get_version);
  Bind(library, name, "cuDeviceGet", &driver->device_get);
  Bind(library, name, "cuDevicePrimaryCtxRetain", &driver->primary_ctx_retain);
  Bind(library, name, "cuDevicePrimaryCtxRelease_v2", &driver->primary_ctx_release);
  Bind(library, name, "cuCtxSetCurrent", &driver->ctx_set_current);
  Bind(library, name, "cuStreamCreate", &driver->stream_create);
  Bind(library, name, "cuStreamDestroy_v2", &driver->stream_destroy);
  Bind(library, name, "cuStreamWaitEvent", &driver->stream_wait_event);
  Bind(library, name, "cuStreamSynchronize", &driver->stream_synchronize);
  Bind(library, name, "cuEventCreate", &driver->event_create);
  Bind(library, name, "cuEventDestroy_v2", &driver->event_destroy);
  Bind(library, name, "cuEventRecord", &driver->event_record);
  Bind(library, name, "cuEventSynchronize", &driver->event_synchronize);
  Bind(library, name, "cuMemHostRegister_v2", &driver->mem_host_register);
  Bind(library, name, "cuMemHostUnregister", &driver->mem_host_unregister);
  Bind(library, name, "cuMemcpyAsync", &driver->memcpy_async);
  Bind(library, name, "cuGetErrorName", &driver->get_error_name);
}

// A driver without the batch copy is fine: copies are then issued one by one.
void BindBatch(void* library, Driver* driver) {
  auto* get = reinterpret_cast<GetProcAddress>(dlsym(library, "cuGetProcAddress_v2"));
  int version = 0;
  if (get == nullptr || driver->driver_get_version(&version) != kSuccess) {
    return;
  }
  void* function = nullptr;
  int status = 0;
  if (version >= kBatchV2Since &&
      get("cuMemcpyBatchAsync", &function, kBatchV2Since, 0, &status) == kSuccess &&
      function != nullptr) {
    driver->batch_v2 = reinterpret_cast<decltype(driver->batch_v2)>(function);
    return;
  }
  if (version >= kBatchV1Since &&
      get("cuMemcpyBatchAsync", &function, kBatchV1Since, 0, &status) == kSuccess &&
      function != nullptr) {
    driver->batch_v1 = reinterpret_cast<decltype(driver->batch_v1)>(function);
  }
}

std::string LibraryName(const std::string& library) {
  if (!library.empty()) {
    return library;
  }
  const char* named = std::getenv("KVSHELF_LIBCUDA");
  return named != nullptr && *named != '\0' ? named : "libcuda.so.1";
}

}  // namespace

std::string Driver::ErrorName(Result error) const {
  const char* name = nullptr;
  if (get_error_name(error, &name) == kSuccess && name != nullptr) {
    return name;
  }
  return "error " + std::to_string(error);
}

std::shared_ptr<const Driver> OpenDriver(const std::string& library) {
  const std::string name = LibraryName(library);
  void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    throw std::runtime_error("cannot open the CUDA driver " + name + ": " + dlerror());
  }
  auto driver = std::make_shared<Driver>();
  BindAll(handle, name, driver.get());
  if (const Result error = driver->init(0); error != kSuccess) {
    throw std::runtime_error("cuInit of " + name + " failed: " + driver->ErrorName(error));
  }
  BindBatch(handle, driver.get());
  BindPages(handle, &driver->pages);
  return driver;
}

}  // namespace kvshelf::cuda
