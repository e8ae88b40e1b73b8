// Host memory that engines take for a GPU's: they copy it instead of reading it where it lies.
#pragma once

#include "kvshelf/device.h"

namespace kvshelf::testing {

class FarDevice final : public Device {
 public:
  StagingBuffer AllocateStaging(std::size_t bytes) override {
    return host_->AllocateStaging(bytes);
  }
  std::shared_ptr<CopyStream> NewStream() override { return host_->NewStream(); }
  std::shared_ptr<void> RecordEvent(std::uintptr_t) override { return nullptr; }
  bool host_accessible() const override { return false; }

 private:
  std::shared_ptr<Device> host_ = MakeHostDevice();
};

}  // namespace kvshelf::testing
