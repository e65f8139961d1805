// The inner loops, once per instruction set; `kernels()` gives the best ones this CPU runs.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rankc {

// Rows lie anywhere in memory, so the hardware can't foresee them: while row i of a list is read,
// row i + by is fetched, if the list has that many.
struct Ahead {
  int64_t by;
  int64_t size;
};

struct Kernels {
  const char* name;
  int lanes;  // floats in a register

  // out[width] = factor * sum over i < count of weights[i] * rows[i]; no weights means ones.
  void (*pool_floats)(const void* const* rows, const float* weights, int64_t count, Ahead ahead,
                      int width, float factor, float* out);

  // The same with rows of codes: row i is codes[i] * scale_i + bias_i, where scales[i] points at
  // the two.
  void (*pool_codes)(const void* const* rows, const float* const* scales, const float* weights,
                     int64_t count, Ahead ahead, int width, float factor, float* out);

  // Dot products of rows of x, `stride` floats apart (a multiple of lanes), in blocks of
  // lanes / 4 by 4 rows. Block i lies at products + i * lanes.
  void (*dot_blocks)(const float* x, int stride, const int32_t* blocks, int count, float* products);

  // codes[i] = saturate(round(x[i] / scale) + zero_point), halves to even.
  void (*quantize)(const float* x, int64_t count, float scale, int zero_point, uint8_t* codes);
};

// Instruction sets, in order.
enum Level : int { kPortable = 0, kAvx2 = 1, kAvx512 = 2 };

// The best set of the CPU, or the one that was asked for.
const Kernels& kernels();
Level level();

}  // namespace rankc

extern "C" {
// Limits the instruction set, for tests; returns the one in use.
__attribute__((visibility("default"))) int rankc_limit(int level);
}
