// What the engine's threads wait for.
#pragma once

#include "engine_lock.h"

namespace kvshelf {

struct Wakeups {
  Condition io;          // a file to load or to store
  Condition load;        // a file to load
  Condition meta;        // lookups or touches
  Condition copy;        // a file to copy, a buffer freed, or a file given up
  Condition supervisor;  // an earlier deadline, or the end
  Condition changed;     // for Wait, Drain and Close: a report, a touch, an exit

  void AllThreads() {
    for (Condition* each : {&io, &load, &meta, &copy, &supervisor}) each->notify_all();
  }
};

}  // namespace kvshelf
