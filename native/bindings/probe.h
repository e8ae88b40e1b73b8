#pragma once

#include <nanobind/nanobind.h>

namespace kvshelf {

void BindProbe(nanobind::module_& m);

}  // namespace kvshelf
