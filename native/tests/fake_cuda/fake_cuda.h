// Controls of the fake CUDA driver (fake_cuda.cpp). C linkage, so that Python's ctypes can call
// them.
#pragma once

#include <cstddef>

struct StreamHandle;
struct EventHandle;

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
