// Runs a fuzz target without libFuzzer: its seeds, then inputs made from them by seeded mutations.
// Where the compiler reports edges (-fsanitize-coverage=trace-pc, GCC and clang) an input that
// reaches a new one is kept and mutated further. The same seed and run count make the same inputs.
//
//   TARGET [--runs N] [--seconds S] [--seed N] [--vectors DIR] [--write-seeds DIR] [FILE...]
//
// Files are run once and nothing is mutated: that is how a failure is looked at. The input of a
// failure is written to the working directory as crash-TARGET.
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

#include "fuzz.h"

namespace {

namespace fs = std::filesystem;
using Random = std::mt19937_64;

constexpr std::size_t kInputBytesMax = 64 << 10;
constexpr std::size_t kCorpusMax = 4096;
constexpr unsigned kHangSeconds = 60;  // sanitizers on a busy machine; an input takes microseconds

struct Options {
  std::uint64_t runs = 0;
  double seconds = 0;
  std::uint64_t seed = 1;
  std::string vectors, write_seeds;
  std::vector<std::string> files;
};

// What the compiler's hook has seen. Static: the hook has no argument to find it by.
std::array<std::atomic<bool>, 1 << 16> edges;
std::atomic<std::uint64_t> edge_count;
const std::string* current_input = nullptr;
std::string crash_file;  // made before anything can fail

std::string ReadFile(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Only calls that a signal handler may make.
void SaveInput(int signal) {
  if (current_input != nullptr) {
    const int fd = ::open(crash_file.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    const ssize_t written = ::write(fd, current_input->data(), current_input->size());
    static_cast<void>(written);
    ::close(fd);
    constexpr std::string_view kText = "the input is in the file crash-TARGET\n";
    static_cast<void>(::write(STDERR_FILENO, kText.data(), kText.size()) == 0);
  }
  ::signal(signal, SIG_DFL);
  ::raise(signal);
}

void RunOne(const std::string& input) {
  current_input = &input;
  ::alarm(kHangSeconds);
  LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(input.data()), input.size());
  ::alarm(0);
  current_input = nullptr;
}

std::uint64_t Interesting(Random& random) {
  constexpr std::uint64_t kNumbers[] = {0,     1,          4095,       4096,       4097,  448,
                                        449,   0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 65535, 8192,
                                        ~0ull, 1ull << 63, ~0ull >> 1, ~4095ull,   32,    128};
  const std::uint64_t number = kNumbers[random() % std::size(kNumbers)];
  return random() % 3 == 0 ? number + random() % 3 - 1 : number;
}

void MutateOnce(std::string& input, const std::string& other, Random& random) {
  if (input.empty()) input.push_back('\0');
  const std::size_t at = random() % input.size();
  const std::size_t widths[] = {1, 2, 4, 8};
  const std::size_t width = std::min(widths[random() % 4], input.size() - at);
  switch (random() % 8) {
    case 0:
      input[at] = static_cast<char>(input[at] ^ (1 << random() % 8));
      break;
    case 1:
      input[at] = static_cast<char>(random());
      break;
    case 2:
    case 3: {  // where numbers lie, more often than not
      const std::size_t aligned = random() % 4 == 0 ? at : at / width * width;
      const std::uint64_t number = Interesting(random);
      std::memcpy(input.data() + aligned, &number, std::min(width, input.size() - aligned));
      break;
    }
    case 4:
      input.resize(random() % 4 == 0 ? at : input.size() - width);
      break;
    case 5:
      input.insert(at, random() % 64, static_cast<char>(random()));
      break;
    case 6: {  // the end of another input
      const std::size_t from = other.empty() ? 0 : random() % other.size();
      input.replace(at, std::string::npos, other, from);
      break;
    }
    default: {  // a part of this one, elsewhere
      const std::size_t bytes = std::min<std::size_t>(random() % 128, input.size() - at);
      const std::string part = input.substr(at, bytes);
      input.replace(random() % input.size(), bytes, part);
    }
  }
  if (input.size() > kInputBytesMax) input.resize(kInputBytesMax);
}

std::vector<std::string> ReadVectors(const std::string& folder) {
  std::vector<std::string> names, contents;
  if (folder.empty()) return contents;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == ".chunk") names.push_back(entry.path().string());
  }
  std::ranges::sort(names);  // the same order everywhere, so that a seed means the same
  for (const std::string& name : names) contents.push_back(ReadFile(name));
  return contents;
}

Options Parse(int count, char** words) {
  Options options;
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    if (!word.starts_with("--")) {
      options.files.push_back(word);
      continue;
    }
    const std::string value = i + 1 < count ? words[++i] : "";
    if (word == "--runs")
      options.runs = std::stoull(value);
    else if (word == "--seconds")
      options.seconds = std::stod(value);
    else if (word == "--seed")
      options.seed = std::stoull(value);
    else if (word == "--vectors")
      options.vectors = value;
    else if (word == "--write-seeds")
      options.write_seeds = value;
    else
      DEMAND(!"an option that is known");
  }
  return options;
}

std::uint64_t Fuzz(const Options& options, std::vector<std::string> corpus) {
  Random random(options.seed);
  std::uint64_t runs = 0;
  for (const std::string& seed : corpus) RunOne(seed), ++runs;
  const auto end =
      std::chrono::steady_clock::now() + std::chrono::duration<double>(options.seconds);
  while (runs < options.runs || std::chrono::steady_clock::now() < end) {
    std::string input = corpus[random() % corpus.size()];
    const std::string& other = corpus[random() % corpus.size()];
    for (std::uint64_t i = 0, times = 1 + random() % 5; i < times; ++i) {
      MutateOnce(input, other, random);
    }
    const std::uint64_t before = edge_count;
    RunOne(input);
    ++runs;
    if (edge_count > before && corpus.size() < kCorpusMax) corpus.push_back(std::move(input));
  }
  std::printf("%llu runs, %llu edges, %zu inputs in the corpus\n",
              static_cast<unsigned long long>(runs),
              static_cast<unsigned long long>(edge_count.load()), corpus.size());
  return runs;
}

}  // namespace

// Called by instrumented code at each edge, by any thread.
extern "C" void __sanitizer_cov_trace_pc() {
  thread_local std::uintptr_t previous = 0;
  const auto here = reinterpret_cast<std::uintptr_t>(__builtin_return_address(0));
  const std::uint64_t mixed = (here ^ previous << 7) * 0x9E3779B97F4A7C15ull;
  previous = here;
  std::atomic<bool>& seen = edges[mixed >> 48];
  if (!seen.load(std::memory_order_relaxed) && !seen.exchange(true)) ++edge_count;
}

// So that a sanitizer's finding saves the input too.
extern "C" const char* __asan_default_options() { return "abort_on_error=1:detect_leaks=0"; }
extern "C" const char* __ubsan_default_options() { return "halt_on_error=1:abort_on_error=1"; }

int main(int count, char** words) {
  const Options options = Parse(count, words);
  crash_file = "crash-" + fs::path(words[0]).filename().string();
  for (const int signal : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGALRM}) {
    ::signal(signal, SaveInput);
  }
  for (const std::string& file : options.files) RunOne(ReadFile(file));
  if (!options.files.empty()) return 0;
  std::vector<std::string> corpus = kvshelf::fuzz::Seeds(ReadVectors(options.vectors));
  corpus.emplace_back();
  if (!options.write_seeds.empty()) {
    fs::create_directories(options.write_seeds);
    for (std::size_t i = 0; i < corpus.size(); ++i) {
      std::ofstream(fs::path(options.write_seeds) / std::to_string(i), std::ios::binary)
          << corpus[i];
    }
    return 0;
  }
  Fuzz(options, std::move(corpus));
  return 0;
}
