#pragma once

#include <nanobind/nanobind.h>

namespace kvshelf {

// Adds ShelfSweep and what belongs to it to the module.
void BindSweep(nanobind::module_& m);

}  // namespace kvshelf
