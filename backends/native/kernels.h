// The inner loops, once per instruction set; `kernels()` gives the best ones this CPU runs.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rankc {

// How the rows of a table are stored. Codes have a scale and a bias a row, which lie side by side:
// two floats for bytes, two halves for nibbles, of which a byte holds two, the low one first.
enum Coding : int64_t { kFloats = 0, kHalves = 1, kBytes = 2, kNibbles = 3 };
constexpr int kCodings = 4;

constexpr int64_t row_bytes(int64_t coding, int64_t width) {
  return coding == kFloats ? 4 * width : coding == kHalves ? 2 * width
         : coding == kBytes ? width : (width + 1) / 2;
}

// A list of rows, cut into bags.
struct Bags {
  const void* const* rows;
  const void* const* scales;
  const float* weights;    // of each row, or null for ones
  const int64_t* sizes;    // of each bag, or null if all are `size`
  const float* factors;    // of each bag, or null if all are `factor`
  int64_t size, count;
  float factor;
  // Rows lie anywhere in memory, so the hardware can't foresee them: while row i is read, row
  // i + ahead is fetched, if the list has that many.
  int64_t ahead, listed;
};

struct Kernels {
  const char* name;
  int lanes;  // floats in a register

  // By coding. Bag b is written to out + b * stride: factor * sum of weights * rows.
  void (*pool[kCodings])(const Bags& bags, int width, float* out, int64_t stride);

  // Bags of one row of floats each. Row i is written to out + i * stride.
  void (*copy)(const Bags& bags, int width, float* out, int64_t stride);

  // Dot products of pairs of rows of x, `stride` floats apart (a multiple of lanes), in blocks of
  // lanes / 4 by 4 rows. Block i lies at products + i * lanes.
  void (*dot_blocks)(const float* x, int stride, const int32_t* blocks, int count, float* products);

  // Elementwise products of pairs of such rows, `width` floats each, one after the other.
  void (*multiply_pairs)(const float* x, int stride, const int32_t* pairs, int count, int width,
                         float* products);

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
