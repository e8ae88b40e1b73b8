// The verifier of whole chunk files, for kvshelf.upkeep.scrub. Reading and hashing release the GIL.
#include "scrub.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <stdexcept>

#include "kvshelf/chunk_verifier.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvshelf {
namespace {

std::string_view View(const nb::bytes& bytes) { return {bytes.c_str(), bytes.size()}; }

bool Begin(ChunkVerifier& verifier, int fd, std::uint64_t file_bytes, nb::bytes namespace_start,
           nb::bytes key, std::uint32_t rank, std::optional<bool> authenticated, bool use_key) {
  const ExpectedChunk expected{View(namespace_start), View(key), rank, authenticated, use_key};
  if (expected.namespace_start.size() > kNamespaceBytes) {
    throw std::invalid_argument("namespace_start must have at most 32 bytes");
  }
  nb::gil_scoped_release no_gil;
  return verifier.Begin(fd, file_bytes, expected);
}

// As (verdict, errno, reason, bytes read).
nb::tuple Result(const ChunkVerifier& verifier) {
  return nb::make_tuple(static_cast<int>(verifier.verdict()), verifier.error(), verifier.reason(),
                        verifier.bytes_read());
}

}  // namespace

void BindScrub(nb::module_& m) {
  nb::class_<ChunkVerifier>(m, "ChunkVerifier", "See kvshelf.upkeep.scrub.verify.")
      .def(
          "__init__",
          [](ChunkVerifier* self, std::size_t step_bytes, nb::bytes auth_key) {
            new (self) ChunkVerifier(step_bytes, std::string(View(auth_key)));
          },
          "step_bytes"_a, "auth_key"_a)
      .def("begin", Begin, "fd"_a, "file_bytes"_a, "namespace_start"_a, "key"_a, "rank"_a,
           "authenticated"_a.none(), "use_key"_a)
      .def("step", &ChunkVerifier::Step, nb::call_guard<nb::gil_scoped_release>())
      .def("result", Result);
}

}  // namespace kvshelf
