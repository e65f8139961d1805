// The kernels of a row-wise quantized linear, and the weight in the order that they read it.
#pragma once

#include <cstdint>
#include <memory>

namespace rankc {

// A weight [outputs, inputs] as the model file has it.
struct RowwiseWeight {
  int64_t outputs, inputs;
  const int8_t* codes;
  const float* scale;             // [outputs]
  const float* bias = nullptr;    // [outputs], or none
  const float* columns = nullptr; // [inputs], what the input is multiplied by, or none
  const int64_t* kept = nullptr;  // columns that stay float
  int64_t kept_count = 0;
  const float* kept_weight = nullptr;  // [outputs, kept_count]
};

// The weight in the order of a kernel.
class Packed {
 public:
  explicit Packed(const RowwiseWeight& weight) : outputs(weight.outputs), inputs(weight.inputs) {}
  virtual ~Packed() = default;
  // out[count, outputs] from x[count, inputs].
  virtual void run(const float* x, int64_t count, float* out, bool relu) const = 0;

  const int64_t outputs, inputs;
};

// For the instruction set in use (`kernels()`).
std::unique_ptr<Packed> make_packed(const RowwiseWeight& weight);

}  // namespace rankc
