#include "kvshelf/engine.h"

#include "engine_core.h"

namespace kvshelf {

Engine::Engine(EngineSetup setup) : core_(std::make_shared<EngineCore>(std::move(setup))) {
  try {
    core_->Start();
  } catch (...) {  // no more threads: end those that were started, they own the core
    core_->Close(0);
    throw;
  }
}

Engine::~Engine() { core_->Close(1.0); }

void Engine::SubmitStore(JobId id, const Batch& batch) {
  core_->SubmitTransfers(JobKind::kStore, id, batch);
}
void Engine::SubmitLoad(JobId id, const Batch& batch) {
  core_->SubmitTransfers(JobKind::kLoad, id, batch);
}
void Engine::SubmitLookup(JobId id, std::vector<std::string> paths) {
  core_->SubmitLookup(id, std::move(paths));
}
void Engine::SubmitLookupKeys(JobId id, std::vector<std::string> folders,
                              std::vector<std::string> keys, std::vector<std::uint32_t> runs) {
  core_->SubmitLookupKeys(id, std::move(folders), std::move(keys), std::move(runs));
}
void Engine::SubmitProbe(JobId id, std::vector<std::string> paths, std::uint64_t bytes_max) {
  core_->SubmitProbe(id, std::move(paths), bytes_max);
}
void Engine::Touch(std::vector<std::string> paths) { core_->Touch(std::move(paths)); }
void Engine::TouchKeys(const std::vector<std::string>& folders,
                       const std::vector<std::string>& keys,
                       const std::vector<std::int64_t>& times_ns, bool always) {
  core_->TouchKeys(folders, keys, times_ns, always);
}
void Engine::SetClock(std::int64_t ahead_ns) { core_->SetClock(ahead_ns); }
std::vector<Report> Engine::Poll() { return core_->Poll(); }
bool Engine::HasReports() const { return core_->HasReports(); }
bool Engine::Wait(std::span<const JobId> ids, Phase phase, double timeout_seconds) {
  return core_->Wait(ids, phase, timeout_seconds);
}
void Engine::Release(std::span<const JobId> ids) { core_->Release(ids); }
void Engine::Cancel(std::span<const JobId> ids) { core_->Cancel(ids); }
bool Engine::Drain(double timeout_seconds) { return core_->Drain(timeout_seconds); }
EngineStats Engine::Stats() const { return core_->Stats(); }
bool Engine::Close(double timeout_seconds) { return core_->Close(timeout_seconds); }

}  // namespace kvshelf
