// A linear in INT8 whose input is quantized row by row: y = relu(x · Wᵀ + b) from float to float.
//
// Each row of x is rounded to 256 steps between its own least and largest value, multiplied with
// signed codes of the weight in integers, and brought back: with x ≈ low + step · q the product is
// scale · (step · (q · codes) + low · sum(codes)). Columns that stay float are added as they are.
// ONNX Runtime does this in a dozen operators, each of which writes its result to memory.

#include "linear.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "rowwise.h"

namespace rankc {
namespace {

constexpr int64_t kRowsPerTask = 96;

class Linear {
 public:
  explicit Linear(const Info* info) {
    size_t next = 1;
    auto constant = [&](const char* name, int type) {
      Tensor tensor = Api::constant(info, next++);
      if (tensor.data == nullptr || tensor.type != type)
        throw Error(std::string("rankc: the ") + name + " of a linear isn't a constant");
      return tensor;
    };
    // A constant of so many numbers; model files come from anywhere.
    auto numbers = [&](const char* name, int64_t count) {
      Tensor tensor = constant(name, kFloat);
      if (tensor.count() != count)
        throw Error(std::string("rankc: the ") + name + " of a linear doesn't fit its weight");
      return tensor.as<float>();
    };
    Tensor codes = constant("codes", kInt8);
    if (codes.rank != 2 || codes.count() == 0)
      throw Error("rankc: the codes of a linear are no matrix");
    RowwiseWeight weight{codes.rows(), codes.stride(), codes.as<int8_t>(),
                         numbers("scale", codes.rows())};
    if (Api::attribute(info, "bias", int64_t(0))) weight.bias = numbers("bias", weight.outputs);
    if (Api::attribute(info, "columns", int64_t(0)))
      weight.columns = numbers("column scale", weight.inputs);
    if (Api::attribute(info, "kept", int64_t(0))) {
      Tensor kept = constant("kept columns", kInt64);
      weight.kept = kept.as<int64_t>();
      weight.kept_count = kept.count();
      weight.kept_weight = numbers("kept weight", product(weight.outputs, weight.kept_count));
    }
    for (int64_t i = 0; i < weight.kept_count; ++i)
      if (weight.kept[i] < 0 || weight.kept[i] >= weight.inputs)
        throw Error("rankc: a linear keeps a column that it doesn't have");
    require_sums(weight);
    packed_ = make_packed(weight);
    relu_ = Api::attribute(info, "relu", int64_t(0)) != 0;
  }

  void compute(Context* context) const {
    Tensor x = Api::input(context, 0);
    if (x.type != kFloat || x.rank == 0 || x.dims[x.rank - 1] != packed_->inputs)
      throw Error("rankc: the input of a linear has another width than its weight");
    std::vector<int64_t> dims(x.dims, x.dims + x.rank);
    dims.back() = packed_->outputs;
    Run run{this, x.as<float>(), nullptr, 1};
    for (size_t i = 0; i + 1 < x.rank; ++i) run.rows = product(run.rows, x.dims[i]);
    run.out = static_cast<float*>(Api::output(context, dims));
    size_t tasks = size_t((run.rows + kRowsPerTask - 1) / kRowsPerTask);
    if (tasks == 1) task(&run, 0);
    if (tasks > 1) Api::parallel(context, tasks, task, &run);
  }

 private:
  // Sums of codes and steps (0 to 255) must fit into 32 bits.
  static void require_sums(const RowwiseWeight& weight) {
    for (int64_t n = 0; n < weight.outputs; ++n) {
      int64_t above = 0, below = 0;
      for (int64_t k = 0; k < weight.inputs; ++k) {
        int8_t code = weight.codes[n * weight.inputs + k];
        (code > 0 ? above : below) += code;
      }
      if (std::max(above, -below) > std::numeric_limits<int32_t>::max() / 255)
        throw Error("rankc: the codes of a linear are too large for their number to be added");
    }
  }

  struct Run {
    const Linear* op;
    const float* x;
    float* out;
    int64_t rows;
  };

  static void task(void* data, size_t index) {
    const Run* run = static_cast<const Run*>(data);
    const Packed& packed = *run->op->packed_;
    int64_t first = int64_t(index) * kRowsPerTask;
    int64_t count = std::min(kRowsPerTask, run->rows - first);
    packed.run(run->x + first * packed.inputs, count, run->out + first * packed.outputs,
               run->op->relu_);
  }

  std::unique_ptr<Packed> packed_;
  bool relu_ = false;
};

}  // namespace

std::vector<const Operator*> linear_operators() {
  static const Operator linear = [] {
    Operator op{};
    op.version = kApiVersion;
    op.name = [](const Operator*) { return "RowwiseLinear"; };
    op.provider = [](const Operator*) -> const char* { return nullptr; };
    op.input_type = [](const Operator*, size_t) -> int { return kAnyType; };
    op.input_count = [](const Operator*) -> size_t { return 1; };
    op.output_type = [](const Operator*, size_t) -> int { return kFloat; };
    op.output_count = [](const Operator*) -> size_t { return 1; };
    op.input_arity = [](const Operator*, size_t) -> int { return kVariadic; };
    op.output_arity = [](const Operator*, size_t) -> int { return kRequired; };
    op.input_memory = [](const Operator*, size_t) { return 0; };
    op.variadic_inputs_min = [](const Operator*) { return 1; };
    op.variadic_inputs_alike = [](const Operator*) { return 0; };
    op.variadic_outputs_min = op.variadic_inputs_min;
    op.variadic_outputs_alike = op.variadic_inputs_alike;
    op.create = [](const Operator*, const void*, const Info* info, void** kernel) {
      return guarded([&] { *kernel = new Linear(info); });
    };
    op.compute = [](void* kernel, Context* context) {
      return guarded([&] { static_cast<const Linear*>(kernel)->compute(context); });
    };
    op.destroy = [](void* kernel) { delete static_cast<Linear*>(kernel); };
    op.first_version = [](const Operator*) { return 1; };
    op.last_version = [](const Operator*) { return 1; };
    return op;
  }();
  return {&linear};
}

}  // namespace rankc
