// What a file system does when an engine uses it, for kvshelf.doctor.
#include "probe.h"

#include <nanobind/stl/string.h>
#include <sys/vfs.h>

#include <cerrno>
#include <system_error>

#include "kvshelf/probe.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvshelf {
namespace {

nb::tuple Pair(const FileResult& result) {
  return nb::make_tuple(static_cast<int>(result.status), result.error);
}

nb::dict AsDict(const ProbeReport& report) {
  constexpr std::int64_t kNanoseconds = 1'000'000'000;
  nb::dict found;
  found["stored"] = Pair(report.stored);
  found["stored_again"] = Pair(report.stored_again);
  found["replaced"] = report.replaced;
  found["loaded"] = Pair(report.loaded);
  found["removed"] = Pair(report.removed);
  found["naming"] = static_cast<int>(report.naming);
  found["rename_error"] = report.rename_error;
  found["link_error"] = report.link_error;
  found["allocate_error"] = report.allocate_error;
  found["in_order"] = report.order == WriteOrder::kInOrder;
  found["direct_error"] = report.direct_error;
  found["touch_error"] = report.touch_error;
  found["touched_ns"] = report.touched.tv_sec * kNanoseconds + report.touched.tv_nsec;
  found["wanted_ns"] = kProbeTime.tv_sec * kNanoseconds + kProbeTime.tv_nsec;
  found["synced_data"] = Pair(report.synced_data);
  found["synced_full"] = Pair(report.synced_full);
  found["sync_seconds"] = report.sync_seconds;
  return found;
}

nb::dict RunProbe(const std::string& directory, mode_t file_mode, mode_t dir_mode) {
  ProbeReport report;
  {
    nb::gil_scoped_release no_gil;
    report = Probe(directory, file_mode, dir_mode);
  }
  return AsDict(report);
}

std::uint64_t FileSystemMagic(const std::string& path) {
  struct statfs found{};
  const nb::gil_scoped_release no_gil;
  if (::statfs(path.c_str(), &found) != 0) {
    throw std::system_error(errno, std::generic_category(), path);
  }
  return static_cast<std::uint64_t>(found.f_type) & 0xFFFFFFFF;
}

std::string TempPrefix() { return OwnTempPrefix(); }

}  // namespace

void BindProbe(nb::module_& m) {
  m.def("probe", RunProbe, "directory"_a, "file_mode"_a, "dir_mode"_a,
        "What the engine's own calls meet in the directory; see native/include/kvshelf/probe.h.");
  m.def("file_system_magic", FileSystemMagic, "path"_a, "The type of statfs(2).");
  m.def("temp_prefix", TempPrefix, "The first part of the names of this process's temp files.");
}

}  // namespace kvshelf
