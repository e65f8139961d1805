#include "kernels.h"

#include <atomic>

#include "lanes.h"

namespace rankc {
namespace {

const Kernels kSets[] = {
    portable::named("portable"),
#if defined(__x86_64__)
    avx2::named("avx2"),
    avx512::named("avx512"),
#endif
};

int best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    return kAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) return kAvx2;
#endif
  return kPortable;
}

std::atomic<int> limit{best()};

}  // namespace

Level level() { return Level(limit.load(std::memory_order_relaxed)); }

const Kernels& kernels() { return kSets[level()]; }

}  // namespace rankc

int rankc_limit(int wanted) {
  int top = rankc::best();
  rankc::limit = wanted < 0 ? 0 : wanted < top ? wanted : top;
  return rankc::limit;
}
