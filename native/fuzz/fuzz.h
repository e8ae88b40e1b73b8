// What the fuzz targets share: an input that is taken apart, and a check that ends the process.
// A target is a program with LLVMFuzzerTestOneInput; main is libFuzzer's or driver.cpp's.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes);

namespace kvshelf::fuzz {

// Inputs worth to begin with, from the files of tests/vectors; each target has its own.
std::vector<std::string> Seeds(const std::vector<std::string>& vectors);

// Reads an input from the front; zeros when there is no more.
class Input {
 public:
  Input(const std::uint8_t* data, std::size_t bytes)
      : rest_(reinterpret_cast<const char*>(data), bytes) {}

  template <typename Number>
  Number Take() {
    Number value{};
    const std::size_t bytes = rest_.size() < sizeof(value) ? rest_.size() : sizeof(value);
    if (bytes > 0) std::memcpy(&value, rest_.data(), bytes);
    rest_.remove_prefix(bytes);
    return value;
  }
  std::string Text(std::size_t bytes_max) {
    const std::string_view part = rest_.substr(0, bytes_max);
    rest_.remove_prefix(part.size());
    return std::string(part);
  }
  std::string_view rest() const { return rest_; }
  bool empty() const { return rest_.empty(); }

 private:
  std::string_view rest_;
};

inline void Demand(bool ok, const char* text, const char* file, int line) {
  if (ok) return;
  std::fprintf(stderr, "%s:%d: not so: %s\n", file, line, text);
  std::abort();
}

}  // namespace kvshelf::fuzz

#define DEMAND(condition) \
  ::kvshelf::fuzz::Demand(static_cast<bool>(condition), #condition, __FILE__, __LINE__)
