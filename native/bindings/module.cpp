// The Python face of the native core; only this folder knows Python. Arguments are checked
// here and in the core; src/kvshelf/engine/native.py gives them their Python types.
//
// The GIL is released around whatever may wait (wait, drain, close, release, construction,
// destruction). Native threads never take it: results are fetched by poll, so no call can wait for
// a thread that waits for the GIL.
#include <fcntl.h>
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <optional>
#include <system_error>
#include <type_traits>
#include <utility>

#include "kvshelf/crc64.h"
#include "kvshelf/cuda_device.h"
#include "kvshelf/engine.h"
#include "kvshelf/root_dir.h"
#include "probe.h"
#include "scrub.h"
#include "sweep.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvshelf {
namespace {

using Column = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

std::span<const std::int32_t> View(const Column& column) { return {column.data(), column.size()}; }

std::string_view View(const nb::bytes& bytes) { return {bytes.c_str(), bytes.size()}; }

// One field of EngineConfig: how it is taken from Python and given back. Python's EngineConfig is
// the table of them; a test compares it with this one and with config.h.
struct ConfigField {
  const char* name;
  void (*read)(const nb::handle& value, EngineConfig& config);
  nb::object (*write)(const EngineConfig& config);
};

template <auto kMember>
constexpr ConfigField Field(const char* name) {
  using Type = std::remove_cvref_t<decltype(std::declval<EngineConfig>().*kMember)>;
  using Number = std::conditional_t<std::is_enum_v<Type>, int, Type>;  // choices come as numbers
  return {name,
          [](const nb::handle& value, EngineConfig& config) {
            config.*kMember = static_cast<Type>(nb::cast<Number>(value));
          },
          [](const EngineConfig& config) -> nb::object {
            return nb::cast(static_cast<Number>(config.*kMember));
          }};
}

constexpr ConfigField kConfigFields[] = {
    Field<&EngineConfig::io_threads>("io_threads"),
    Field<&EngineConfig::load_only_threads>("load_only_threads"),
    Field<&EngineConfig::lookup_threads>("lookup_threads"),
    Field<&EngineConfig::piece_bytes>("piece_bytes"),
    Field<&EngineConfig::step_bytes>("step_bytes"),
    Field<&EngineConfig::write_buffer_bytes>("write_buffer_bytes"),
    Field<&EngineConfig::store_queue_seconds>("store_queue_seconds"),
    Field<&EngineConfig::store_timeout_seconds>("store_timeout_seconds"),
    Field<&EngineConfig::load_timeout_seconds>("load_timeout_seconds"),
    Field<&EngineConfig::load_stall_seconds>("load_stall_seconds"),
    Field<&EngineConfig::lookup_timeout_seconds>("lookup_timeout_seconds"),
    Field<&EngineConfig::touch_interval_seconds>("touch_interval_seconds"),
    Field<&EngineConfig::touch_queue_files>("touch_queue_files"),
    Field<&EngineConfig::queue_files>("queue_files"),
    Field<&EngineConfig::write_behind>("write_behind"),
    Field<&EngineConfig::verify>("verify"),
    Field<&EngineConfig::remove_bad>("remove_bad"),
    Field<&EngineConfig::compress>("compress"),
    Field<&EngineConfig::direct>("direct"),
    Field<&EngineConfig::durability>("durability"),
    Field<&EngineConfig::file_mode>("file_mode"),
    Field<&EngineConfig::dir_mode>("dir_mode"),
    Field<&EngineConfig::replacement_threads>("replacement_threads"),
};

EngineConfig ReadConfig(const nb::dict& from) {
  EngineConfig config;
  for (const ConfigField& field : kConfigFields) {
    try {
      field.read(from[field.name], config);
    } catch (const nb::cast_error&) {
      throw std::invalid_argument(std::string(field.name) +
                                  " has the wrong type or is out of range");
    }
  }
  return config;
}

nb::dict ConfigDefaults() {
  nb::dict defaults;
  for (const ConfigField& field : kConfigFields) defaults[field.name] = field.write({});
  return defaults;
}

GroupMemory ReadGroup(const nb::handle& group) {
  std::vector<Pages> pages;
  for (const nb::handle page : nb::cast<nb::sequence>(group[0])) {
    pages.push_back({reinterpret_cast<std::byte*>(nb::cast<std::uintptr_t>(page[0])),
                     nb::cast<std::uint64_t>(page[1]), nb::cast<std::uint64_t>(page[2])});
  }
  return GroupMemory(std::move(pages), nb::cast<std::uint32_t>(group[1]),
                     nb::cast<std::uint64_t>(group[2]));
}

NamespaceDigest ReadNamespace(const nb::bytes& bytes) {
  NamespaceDigest digest{};
  if (bytes.size() != digest.size()) throw std::invalid_argument("namespace must have 32 bytes");
  std::memcpy(digest.data(), bytes.c_str(), digest.size());
  return digest;
}

struct WithoutGil {
  std::optional<nb::gil_scoped_release> released;
};

// An engine that Python owns. Its end waits for storage and frees pinned memory, so its destructor
// lets go of the GIL, and the base that is destroyed last takes it again.
class OwnedEngine : WithoutGil, public Engine {
 public:
  using Engine::Engine;
  ~OwnedEngine() { released.emplace(); }
};

void MakeEngine(OwnedEngine* self, std::string root, nb::sequence groups, nb::dict config,
                nb::bytes namespace_digest, std::uint32_t rank, std::string temp_prefix,
                int cuda_ordinal, int copy_method, nb::bytes auth_key) {
  EngineSetup setup;
  setup.root = std::move(root);
  for (const nb::handle group : groups) setup.groups.push_back(ReadGroup(group));
  setup.config = ReadConfig(config);
  setup.namespace_digest = ReadNamespace(namespace_digest);
  setup.rank = rank;
  setup.temp_prefix = std::move(temp_prefix);
  setup.auth_key = View(auth_key);
  // Opens the root, may try O_DIRECT there, initializes a driver and pins memory.
  nb::gil_scoped_release no_gil;
  if (cuda_ordinal >= 0) {
    setup.device = MakeCudaDevice(cuda_ordinal, "", static_cast<CopyMethod>(copy_method),
                                  setup.config.piece_bytes);
  }
  new (self) OwnedEngine(std::move(setup));
}

using Submit = void (Engine::*)(JobId, const Batch&);

template <Submit kSubmit>
void SubmitBatch(OwnedEngine& engine, JobId id, std::vector<std::string> paths, nb::sequence keys,
                 const Column& groups, const Column& first_blocks, const Column& block_counts,
                 const Column& block_ids, std::uintptr_t stream) {
  Batch batch;
  batch.paths = std::move(paths);
  batch.keys.reserve(batch.paths.size());
  for (const nb::handle key : keys) batch.keys.emplace_back(View(nb::cast<nb::bytes>(key)));
  batch.groups = View(groups);
  batch.first_blocks = View(first_blocks);
  batch.block_counts = View(block_counts);
  batch.block_ids = View(block_ids);
  batch.stream = stream;
  (engine.*kSubmit)(id, batch);
}

// Adds `mask` to `bytes`, bit by bit, as many words at once as there are: one byte at a time took a
// fifth of the call that submits a step's lookups.
void AddMask(char* bytes, const char* mask, std::size_t count) {
  std::size_t at = 0;
  for (std::uint64_t left = 0, right = 0; at + sizeof(left) <= count; at += sizeof(left)) {
    std::memcpy(&left, bytes + at, sizeof(left));
    std::memcpy(&right, mask + at, sizeof(right));
    left ^= right;
    std::memcpy(bytes + at, &left, sizeof(left));
  }
  for (; at < count; ++at) bytes[at] = static_cast<char>(bytes[at] ^ mask[at]);
}

// Keys as chunk files have them: the hash of each, which all but its last four bytes are, with the
// first bytes of the mask added bit by bit (kvshelf.disk.keys.masked).
std::vector<std::string> MaskedKeys(const nb::sequence& keys, const nb::bytes& mask) {
  constexpr std::size_t kGroupBytes = 4;
  std::vector<std::string> masked;
  masked.reserve(nb::len(keys));
  const std::string_view bits = View(mask);
  for (const nb::handle key : keys) {
    std::string& copy = masked.emplace_back(View(nb::cast<nb::bytes>(key)));
    if (bits.empty() || copy.size() < kGroupBytes) continue;
    const std::size_t hash_bytes = copy.size() - kGroupBytes;
    if (bits.size() < hash_bytes) throw std::invalid_argument("mask is shorter than a key's hash");
    AddMask(copy.data(), bits.data(), hash_bytes);
  }
  return masked;
}

void SubmitLookupKeys(OwnedEngine& engine, JobId id, std::vector<std::string> folders,
                      const nb::sequence& keys, std::vector<std::uint32_t> runs,
                      const nb::bytes& mask) {
  engine.SubmitLookupKeys(id, std::move(folders), MaskedKeys(keys, mask), std::move(runs));
}

void TouchKeys(OwnedEngine& engine, const std::vector<std::string>& folders,
               const nb::sequence& keys, const std::vector<std::int64_t>& times_ns, bool always,
               const nb::bytes& mask) {
  engine.TouchKeys(folders, MaskedKeys(keys, mask), times_ns, always);
}

// Reports as (job id, kind, phase, statuses as bytes, errnos or None, payload bytes, seconds).
nb::object Poll(OwnedEngine& engine) {
  if (!engine.HasReports()) return nb::none();
  nb::list result;
  for (const Report& report : engine.Poll()) {
    nb::object errnos = nb::none();
    if (!report.errnos.empty()) errnos = nb::cast(report.errnos);
    result.append(nb::make_tuple(
        report.job_id, static_cast<int>(report.kind), static_cast<int>(report.phase),
        nb::bytes(reinterpret_cast<const char*>(report.statuses.data()), report.statuses.size()),
        errnos, report.payload_bytes, report.seconds));
  }
  return result;
}

bool Wait(OwnedEngine& engine, const std::vector<JobId>& ids, int phase, double timeout_seconds) {
  nb::gil_scoped_release no_gil;
  return engine.Wait(ids, static_cast<Phase>(phase), timeout_seconds);
}

void Release(OwnedEngine& engine, const std::vector<JobId>& ids) {
  nb::gil_scoped_release no_gil;
  engine.Release(ids);
}

nb::tuple Stats(const OwnedEngine& engine) {
  const EngineStats stats = engine.Stats();
  return nb::make_tuple(stats.queued_loads, stats.queued_stores, stats.queued_lookups,
                        stats.queued_touches, stats.write_buffer_used_bytes, stats.hung_threads,
                        stats.touched, stats.touches_dropped, stats.removed_bad,
                        stats.stored_payload_bytes, stats.stored_file_bytes, stats.direct);
}

std::uint64_t Checksum(const nb::bytes& data, std::uint64_t crc) {
  return Crc64(crc, data.c_str(), data.size());
}

nb::bytes EncodeHeader(nb::bytes key, nb::bytes namespace_digest, std::uint32_t rank,
                       std::uint64_t geometry, std::uint64_t block_bytes, std::uint32_t first_block,
                       std::uint32_t block_count, std::uint32_t piece_bytes,
                       const std::vector<std::uint64_t>& checksums) {
  ChunkIdentity identity{ReadNamespace(namespace_digest), View(key), rank, geometry, block_bytes};
  if (identity.key.size() < kKeyBytesMin || identity.key.size() > kKeyBytesMax ||
      piece_bytes == 0 || checksums.size() > kPieceCountMax) {
    throw std::invalid_argument("key, piece_bytes or piece_checksums is out of range");
  }
  ChunkHeader header = MakeHeader(identity, first_block, block_count, piece_bytes);
  std::copy(checksums.begin(), checksums.end(), header.piece_codes.begin());
  PieceCoder coder(nullptr, {});
  SealHeader(header, coder);
  return nb::bytes(reinterpret_cast<const char*>(&header), sizeof(header));
}

// Key, namespace and rank that a sound header names, of whatever version; else None.
nb::object ReadHeader(const nb::bytes& page) {
  ChunkHeader header;
  if (page.size() < sizeof(header)) return nb::none();
  std::memcpy(&header, page.c_str(), sizeof(header));
  if (!HeaderIsSound(header) || header.key_bytes > kKeyBytesMax) return nb::none();
  return nb::make_tuple(
      nb::bytes(reinterpret_cast<const char*>(header.key.data()), header.key_bytes),
      nb::bytes(reinterpret_cast<const char*>(header.namespace_digest.data()), kNamespaceBytes),
      header.rank);
}

// What a reader finds (docs/format.md, steps 2 to 5) in a header that it expects to be this chunk.
int CheckHeader(nb::bytes page, std::uint64_t file_bytes, nb::bytes key, nb::bytes namespace_digest,
                std::uint32_t rank, std::uint64_t geometry, std::uint64_t block_bytes,
                std::uint32_t first_block, std::uint32_t block_count) {
  const ChunkIdentity identity{ReadNamespace(namespace_digest), View(key), rank, geometry,
                               block_bytes};
  ChunkHeader header;
  FileStatus status = FileStatus::kOk;
  if (page.size() < sizeof(header)) return static_cast<int>(FileStatus::kCorrupt);
  std::memcpy(&header, page.c_str(), sizeof(header));
  if (!HeaderIsSound(header)) {
    status = FileStatus::kCorrupt;
  } else if (!HeaderMatches(header, identity)) {
    status = FileStatus::kForeign;
  } else if (!SizesAgree(header, file_bytes)) {
    status = FileStatus::kCorrupt;
  } else if (!HasBlocks(header, first_block, block_count)) {
    status = FileStatus::kNotFound;
  }
  return static_cast<int>(status);
}

int ProbeDirect(std::string directory) {
  nb::gil_scoped_release no_gil;
  return -RootDir(MakePosixFileOps(), directory, OwnTempPrefix(), 0700).ProbeDirect();
}

// OSError with its errno, so that Python picks FileNotFoundError and its like; and ours.
void TranslateError(const std::exception_ptr& pointer, void*) {
  try {
    std::rethrow_exception(pointer);
  } catch (const EngineClosed& error) {
    const nb::object type = nb::module_::import_("kvshelf.errors").attr("EngineClosedError");
    PyErr_SetString(type.ptr(), error.what());
  } catch (const std::system_error& error) {
    const nb::object arguments = nb::make_tuple(error.code().value(), error.what());
    PyErr_SetObject(PyExc_OSError, arguments.ptr());
  }
}

}  // namespace
}  // namespace kvshelf

NB_MODULE(_native, m) {
  using namespace kvshelf;
  // vLLM ends its engine processes with connectors alive, and those hold engines: no leak.
  nb::set_leak_warnings(false);
  m.doc() = "The native core of kvshelf; use it through kvshelf.engine.";
  nb::register_exception_translator(TranslateError);

  // What needs no Python types has the names and defaults of base.py, for NativeEngine inherits it.
  nb::class_<OwnedEngine>(m, "Engine", "See kvshelf.engine.base.Engine.")
      .def("__init__", MakeEngine, "root"_a, "groups"_a, "config"_a, "namespace"_a, "rank"_a,
           "temp_prefix"_a, "cuda_ordinal"_a, "copy_method"_a, "auth_key"_a)
      .def("submit_store", SubmitBatch<&Engine::SubmitStore>, "job_id"_a, "paths"_a, "keys"_a,
           "groups"_a, "first_blocks"_a, "block_counts"_a, "block_ids"_a, "stream"_a)
      .def("submit_load", SubmitBatch<&Engine::SubmitLoad>, "job_id"_a, "paths"_a, "keys"_a,
           "groups"_a, "first_blocks"_a, "block_counts"_a, "block_ids"_a, "stream"_a)
      .def("submit_lookup", &Engine::SubmitLookup, "job_id"_a, "paths"_a)
      .def("submit_lookup_keys", SubmitLookupKeys, "job_id"_a, "folders"_a, "keys"_a,
           "runs"_a = nb::tuple(), "mask"_a = nb::bytes("", 0))
      .def("submit_probe", &Engine::SubmitProbe, "job_id"_a, "paths"_a, "bytes_max"_a)
      .def("touch", &Engine::Touch, "paths"_a)
      .def("touch_keys", TouchKeys, "folders"_a, "keys"_a, "times_ns"_a, nb::kw_only(),
           "always"_a = false, "mask"_a = nb::bytes("", 0))
      .def("set_clock", &Engine::SetClock, "ahead_ns"_a)
      .def("_poll", Poll, nb::sig("def _poll(self) -> list | None"))
      .def("wait", Wait, "job_ids"_a, "phase"_a, "timeout_seconds"_a)
      .def("release", Release, "job_ids"_a)
      .def(
          "cancel", [](OwnedEngine& engine, const std::vector<JobId>& ids) { engine.Cancel(ids); },
          "job_ids"_a)
      .def("drain", &Engine::Drain, "timeout_seconds"_a, nb::call_guard<nb::gil_scoped_release>())
      .def("stats", Stats)
      .def("close", &Engine::Close, "timeout_seconds"_a = 5.0,
           nb::call_guard<nb::gil_scoped_release>());

  m.def("config_defaults", ConfigDefaults, "Fields of EngineConfig, as C++ has them unset.");
  m.def("crc64", Checksum, "data"_a, "crc"_a = 0);
  m.def("encode_header", EncodeHeader, "key"_a, "namespace"_a, "rank"_a, "geometry"_a,
        "block_bytes"_a, "first_block"_a, "block_count"_a, "piece_bytes"_a, "piece_checksums"_a);
  m.def("read_header", ReadHeader, "page"_a);
  m.def("check_header", CheckHeader, "page"_a, "file_bytes"_a, "key"_a, "namespace"_a, "rank"_a,
        "geometry"_a, "block_bytes"_a, "first_block"_a, "block_count"_a);
  m.def("probe_direct", ProbeDirect, "directory"_a,
        "0 if O_DIRECT works for files in the directory, else an errno.");
  BindProbe(m);
  BindScrub(m);
  BindSweep(m);
}
