// What ONNX Runtime calls when it loads the library.

#include "abi.h"
#include "features.h"
#include "linear.h"

extern "C" __attribute__((visibility("default"))) rankc::Status* RegisterCustomOps(
    rankc::SessionOptions* options, const rankc::ApiBase* base) {
  rankc::Api::table = base->get_api(rankc::kApiVersion);
  if (rankc::Api::table == nullptr) return nullptr;  // too old: it said so itself
  return rankc::guarded([&] {
    auto operators = rankc::feature_operators();
    for (const rankc::Operator* each : rankc::linear_operators()) operators.push_back(each);
    rankc::Api::add_operators(options, "rankc", operators);
  });
}
