// The engine: takes calls, and owns the threads and what they share.
#pragma once

#include <memory>
#include <thread>

#include "engine_parts.h"

namespace kvshelf {

class EngineCore : public std::enable_shared_from_this<EngineCore> {
 public:
  explicit EngineCore(EngineSetup setup);
  ~EngineCore();
  void Start();  // after construction: threads co-own the core

  void SubmitTransfers(JobKind kind, JobId id, const Batch& batch);
  void SubmitLookup(JobId id, std::vector<std::string> paths);
  void SubmitLookupKeys(JobId id, std::vector<std::string> folders, std::vector<std::string> keys,
                        std::vector<std::uint32_t> runs);
  void SubmitProbe(JobId id, std::vector<std::string> paths, std::uint64_t bytes_max);
  void Touch(std::vector<std::string> paths);
  void TouchKeys(const std::vector<std::string>& folders, const std::vector<std::string>& keys,
                 const std::vector<std::int64_t>& times_ns, bool always);
  void SetClock(std::int64_t ahead_ns) { parts_.basis.clock.Set(ahead_ns); }
  std::vector<Report> Poll();
  bool HasReports() const { return parts_.jobs.has_reports(); }
  bool Wait(std::span<const JobId> ids, Phase phase, double timeout_seconds);
  void Release(std::span<const JobId> ids);
  void Cancel(std::span<const JobId> ids);
  bool Drain(double timeout_seconds);
  EngineStats Stats() const;
  bool Close(double timeout_seconds);

 private:
  Workers::Body Body();
  void Supervise();

  EngineParts parts_;
  Mutex close_mutex_;  // serializes Close; taken before the engine's
  std::thread supervisor_thread_ ENGINE_GUARDED;
  bool supervisor_exited_ ENGINE_GUARDED = false;
};

}  // namespace kvshelf
