// The operator rankc.RowwiseLinear.
#pragma once

#include <vector>

#include "abi.h"

namespace rankc {

std::vector<const Operator*> linear_operators();

}  // namespace rankc
