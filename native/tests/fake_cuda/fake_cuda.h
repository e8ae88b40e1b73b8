// Controls of the fake CUDA driver (fake_cuda.cpp). C linkage, so that Python's ctypes can call
// them.
#pragma once

#include <cstddef>
#include <cstdint>

struct StreamHandle;
struct EventHandle;

// CUDA_MEMCPY2D as the fake reads it; the layout is that of cuda_driver.h's Memcpy2D.
struct FakeMemcpy2D {
  std::size_t src_x, src_y;
  unsigned src_type;
  const void* src_host;
  std::uint64_t src_device;
  void* src_array;
  std::size_t src_pitch;
  std::size_t dst_x, dst_y;
  unsigned dst_type;
  void* dst_host;
  std::uint64_t dst_device;
  void* dst_array;
  std::size_t dst_pitch;
  std::size_t width, height;
};

extern "C" {
// Version that cuDriverGetVersion claims: below 12080 there is no batch copy, from 13000 the new
// one.
void fake_cuda_set_version(int version);
// How long a stream sleeps before each operation.
void fake_cuda_set_delay_us(int delay_us);
// Make the call of `function` (name without _v2) after `after_calls` more calls return `code`,
// once.
void fake_cuda_fail(const char* function, int after_calls, int code);
// Calls of `function` since the last reset.
long fake_cuda_calls(const char* function);
void fake_cuda_reset();
// A stream operation that writes memory late, as a model's kernel would.
void fake_cuda_fill_later(StreamHandle* stream, void* memory, int value, std::size_t bytes,
                          int delay_us);
}
