// The work of lookup threads: small metadata calls that never queue behind payloads.
#pragma once

#include "engine_parts.h"

namespace kvshelf {

class LookupWork {
 public:
  explicit LookupWork(EngineParts& parts) : parts_(parts) {}

  void Answer(EngineLock& lock ENGINE_LOCKED, const LookupRun& run);
  void Touch(EngineLock& lock ENGINE_LOCKED, Worker& worker);

 private:
  FileResult FindStored(const Transfer& file);
  FileResult AnswerOne(Job& job, std::size_t index, std::uint64_t* bytes);

  EngineParts& parts_;
};

}  // namespace kvshelf
