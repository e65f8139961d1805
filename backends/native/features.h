// The operators rankc.Features and rankc.FeatureCodes: a row of a model's features in one pass.
#pragma once

#include <vector>

#include "abi.h"

namespace rankc {

std::vector<const Operator*> feature_operators();

}  // namespace rankc
