// Bindings that do not belong to the engine; module.cpp makes the module of all.
#pragma once

#include <nanobind/nanobind.h>

namespace kvshelf {

void BindScrub(nanobind::module_& m);

}  // namespace kvshelf
