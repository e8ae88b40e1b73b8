// The CUDA context that copies run in, shared by the files of the CUDA device.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>

#include "cuda_driver.h"

namespace kvshelf {

inline void Check(const cuda::Driver& driver, cuda::Result result, const char* what) {
  if (result != cuda::kSuccess) {
    throw std::runtime_error(std::string(what) + " failed: " + driver.ErrorName(result));
  }
}

// The retained primary context. Released when the last stream and buffer are gone.
class CudaContext {
 public:
  CudaContext(int ordinal, const std::string& library) : driver_(cuda::OpenDriver(library)) {
    Check(*driver_, driver_->device_get(&device_, ordinal), "cuDeviceGet");
    Check(*driver_, driver_->primary_ctx_retain(&context_, device_), "cuDevicePrimaryCtxRetain");
  }
  ~CudaContext() { driver_->primary_ctx_release(device_); }
  CudaContext(const CudaContext&) = delete;
  CudaContext& operator=(const CudaContext&) = delete;

  const cuda::Driver& driver() const { return *driver_; }
  // A thread's current context is its own; setting it again costs next to nothing.
  bool Enter() const { return driver_->ctx_set_current(context_) == cuda::kSuccess; }

 private:
  std::shared_ptr<const cuda::Driver> driver_;
  cuda::Device device_ = 0;
  cuda::Context context_ = nullptr;
};

}  // namespace kvshelf
