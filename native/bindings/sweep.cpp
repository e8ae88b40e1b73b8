// The Python face of ShelfSweep; src/kvshelf/upkeep/evict/native.py gives it its Python types. The
// GIL is released while a call works: its own threads never take it.
#include "sweep.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "kvshelf/shelf_sweep.h"
#include "kvshelf/use_time.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvshelf {
namespace {

// int64[namespaces, classes, 2]: `sure` and `maybe` of each.
using CutArray =
    nb::ndarray<const std::int64_t, nb::shape<-1, kUseClasses, 2>, nb::c_contig, nb::device::cpu>;

using Names = std::vector<std::string>;

void MakeSweep(ShelfSweep* self, std::string root, unsigned threads, double files_per_second,
               std::size_t band_files, std::uint64_t removals_max, Names junk_names,
               Names junk_prefixes, Names junk_suffixes) {
  Junk junk{std::move(junk_names), std::move(junk_prefixes), std::move(junk_suffixes)};
  new (self) ShelfSweep(MakePosixFileOps(), root,
                        {threads, files_per_second, band_files, removals_max}, std::move(junk));
}

// (finished, folders, files, removed files, removed bytes, spared, refused, faults by
//  errno, [(namespace, rank, names)]).
nb::tuple AsTuple(const SweepReport& report) {
  nb::list names;
  for (const RemovedNames& each : report.names) {
    names.append(nb::make_tuple(each.name_space, each.rank, each.names));
  }
  return nb::make_tuple(report.finished, report.folders, report.files, report.removed.files,
                        report.removed.bytes, report.spared, report.refused, report.faults, names);
}

nb::tuple Scan(ShelfSweep& sweep, bool all, double seconds_max) {
  SweepReport report;
  {
    nb::gil_scoped_release no_gil;
    report = sweep.Scan(all, seconds_max);
  }
  return AsTuple(report);
}

void BeginRemoval(ShelfSweep& sweep, const CutArray& cuts, bool dry_run, bool report_names) {
  std::vector<Cuts> rows(cuts.shape(0));
  const std::int64_t* value = cuts.data();
  for (Cuts& row : rows) {
    for (Cut& cut : row) {
      cut.sure_before_ns = *value++;
      cut.maybe_before_ns = *value++;
    }
  }
  nb::gil_scoped_release no_gil;
  sweep.BeginRemoval(std::move(rows), dry_run, report_names);
}

nb::tuple Remove(ShelfSweep& sweep, std::int64_t files, std::int64_t bytes, double seconds_max) {
  SweepReport report;
  {
    nb::gil_scoped_release no_gil;
    report = sweep.Remove({files, bytes}, seconds_max);
  }
  return AsTuple(report);
}

// [(folder, listed, files, bytes, last use in ns)], by index.
nb::list Namespaces(const ShelfSweep& sweep) {
  nb::list result;
  for (const NamespaceState& state : sweep.namespaces()) {
    result.append(nb::make_tuple(state.folder, state.listed, state.amount.files, state.amount.bytes,
                                 state.last_use_ns));
  }
  return result;
}

// The buckets that are not empty: int64[buckets, 5] of namespace, class, bucket, files, bytes.
nb::ndarray<nb::numpy, std::int64_t, nb::ndim<2>> Buckets(const ShelfSweep& sweep) {
  auto rows = std::make_unique<std::vector<std::int64_t>>();
  const std::vector<Histograms>& histograms = sweep.histograms();
  for (std::size_t space = 0; space < histograms.size(); ++space) {
    for (std::size_t use = 0; use < kUseClasses; ++use) {
      for (const auto& [bucket, amount] : histograms[space][use].rows()) {
        if (amount.files == 0) continue;
        for (const std::size_t index : {space, use, bucket}) {
          rows->push_back(static_cast<std::int64_t>(index));
        }
        rows->push_back(amount.files);
        rows->push_back(amount.bytes);
      }
    }
  }
  auto* const data = rows.release();
  const nb::capsule owner(data, [](void* pointer) noexcept {
    delete static_cast<std::vector<std::int64_t>*>(pointer);
  });
  return {data->data(), {data->size() / 5, 5}, owner};
}

nb::list AsBytes(const std::vector<std::string>& paths) {  // names are bytes, UTF-8 or not
  nb::list result;
  for (const std::string& path : paths) result.append(nb::bytes(path.data(), path.size()));
  return result;
}

}  // namespace

void BindSweep(nb::module_& m) {
  nb::class_<ShelfSweep>(m, "ShelfSweep", "See native/include/kvshelf/shelf_sweep.h.")
      .def("__init__", MakeSweep, "root"_a, "threads"_a, "files_per_second"_a, "band_files"_a,
           "removals_max"_a, "junk_names"_a = Names(), "junk_prefixes"_a = Names(),
           "junk_suffixes"_a = Names())
      .def("set_namespaces", &ShelfSweep::SetNamespaces, "folders"_a)
      .def("set_clock", &ShelfSweep::SetClock, "ahead_ns"_a)
      .def("scan", Scan, "all"_a, "seconds_max"_a)
      .def("begin_removal", BeginRemoval, "cuts"_a, "dry_run"_a, "report_names"_a)
      .def("remove", Remove, "files"_a, "bytes"_a, "seconds_max"_a)
      .def("stop", &ShelfSweep::Stop)
      .def("namespaces", Namespaces)
      .def("buckets", Buckets)
      .def("histogram_time_ns", &ShelfSweep::histogram_time_ns)
      .def("coverage", &ShelfSweep::coverage)
      .def("unseen", &ShelfSweep::unseen)
      .def("release_held", &ShelfSweep::ReleaseHeld)
      .def("held",
           [](const ShelfSweep& sweep) {
             const Held& held = sweep.held();
             return nb::make_tuple(held.amount.files, held.amount.bytes, held.by_errno,
                                   AsBytes(held.examples));
           })
      .def("foreign", [](const ShelfSweep& sweep) {
        return nb::make_tuple(sweep.foreign().count, AsBytes(sweep.foreign().examples));
      });
  m.def("is_chunk_name",
        [](const std::string& leaf, const std::string& name) { return IsChunkName(leaf, name); });
  m.def("rank_of", [](const std::string& name) { return RankOf(name); });
  // (last use in ns, whether the chunk was used again) of a file's times; for tests.
  m.def(
      "last_use",
      [](std::int64_t accessed, std::int64_t modified, std::int64_t changed) {
        const auto time = [](std::int64_t ns) {
          const std::int64_t below = (ns % kNsPerSecond + kNsPerSecond) % kNsPerSecond;
          return timespec{(ns - below) / kNsPerSecond, below};
        };
        struct stat file{};
        file.st_atim = time(accessed);
        file.st_mtim = time(modified);
        file.st_ctim = time(changed);
        const UseTime use = LastUse(file);
        return nb::make_tuple(use.ns, use.reused);
      },
      "accessed_ns"_a, "modified_ns"_a, "changed_ns"_a);
  m.def("age_bucket", AgeBucket, "age_ns"_a);
  m.def("age_bucket_begin", AgeBucketBegin, "bucket"_a);
  m.attr("AGE_BUCKETS") = kAgeBuckets;
}

}  // namespace kvshelf
