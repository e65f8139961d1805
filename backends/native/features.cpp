// Looks rows up in tables, pools them, puts them beside dense features, takes dot products of pairs
// of them, and rounds the result to codes: what ONNX Runtime does in a dozen operators, each of
// which writes its result to memory.
//
// A row of the result is a list of segments. A segment is some vectors: of a dense input, or rows
// of a table, pooled by bags. Segments that interact aren't written; where the first of them would
// be come the dot products of pairs of their vectors. The attribute `plan` lists the segments, see
// Segment::read; backends/native_fusions.py writes it.

#include "features.h"

#include <algorithm>
#include <cstring>
#include <mutex>

#include "kernels.h"

namespace rankc {
namespace {

constexpr int64_t kRowsPerTask = 64;
constexpr int64_t kIdsPerTask = 4096;
// How many lookups lie between the fetch of a table's row and its use.
constexpr int64_t kInFlight = 24;

// Where the vectors come from: a dense input; a table, by bags of fixed sizes in a matrix of ids;
// a table, by one bag a row, which offsets cut from a list of ids.
enum Kind : int64_t { kDense = 0, kBags = 1, kOffsets = 2 };

struct Segment {
  int64_t interacts, kind, width;
  // Which inputs of the operator it reads; -1 for none.
  int64_t source, ids, scales, weights, divisor, offsets;
  int64_t first_id, first_weight;  // columns; of a dense input, the first vector
  // Ids of each vector, and what is added to each id.
  std::vector<int64_t> bags, shifts;
  float factor = 1.0f;
  int64_t per_row = 0;

  static Segment read(const std::vector<int64_t>& plan, size_t* at) {
    auto next = [&]() {
      if (*at >= plan.size()) throw Error("rankc: the plan of an operator is cut short");
      return plan[(*at)++];
    };
    Segment s;
    for (int64_t* field : {&s.interacts, &s.kind, &s.width, &s.source, &s.ids, &s.scales,
                           &s.weights, &s.divisor, &s.offsets, &s.first_id, &s.first_weight})
      *field = next();
    for (std::vector<int64_t>* list : {&s.bags, &s.shifts}) {
      list->resize(size_t(next()));
      for (int64_t& value : *list) value = next();
    }
    for (int64_t bag : s.bags) s.per_row += bag;
    return s;
  }

  int64_t vectors() const { return int64_t(bags.size()); }
};

// A segment with the tensors of one run.
struct Source {
  const Segment* segment;
  Tensor data, ids, scales, weights, divisor, offsets;
  int64_t ahead = 0;

  static int64_t integer(const Tensor& tensor, int64_t at) {
    return tensor.type == kInt32 ? tensor.as<int32_t>()[at] : tensor.as<int64_t>()[at];
  }

  int64_t rows() const {
    if (segment->kind == kOffsets) return offsets.rows() - segment->first_id;  // the last is an end
    return segment->kind == kBags ? ids.rows() : data.rows();
  }

  // Ids of a row, about.
  int64_t ids_per_row() const {
    if (segment->kind == kDense) return 0;
    return segment->kind == kBags ? segment->per_row : ids.rows() / std::max<int64_t>(1, rows());
  }

  // The first id of a row, and the end of its ids.
  void range(int64_t row, int64_t* begin, int64_t* end) const {
    if (segment->kind == kBags) {
      *begin = row * ids.stride() + segment->first_id;
      *end = *begin + segment->per_row;
      return;
    }
    *begin = integer(offsets, row);
    *end = row + 1 < offsets.rows() ? integer(offsets, row + 1) : ids.rows();
    if (*begin < 0 || *end < *begin || *end > ids.rows())
      throw Error("row " + std::to_string(row) + " has the ids from " + std::to_string(*begin) +
                  " to " + std::to_string(*end) + " of a list of " + std::to_string(ids.rows()));
  }

  const float* weights_of(int64_t row, int64_t first_id) const {
    if (segment->weights < 0) return nullptr;
    if (segment->kind == kOffsets) return weights.as<float>() + first_id;
    return weights.as<float>() + row * weights.stride() + segment->first_weight;
  }

  float factor_of(int64_t row) const {
    if (segment->divisor < 0) return segment->factor;
    return segment->factor / divisor.as<float>()[row * divisor.stride()];
  }
};

// Where the rows lie that some rows of the batch look up in one segment's table.
struct Lookups {
  std::vector<const void*> rows;
  std::vector<const float*> scales;
  std::vector<int64_t> starts;  // of each row of the batch in the list of ids, and the end
  size_t at = 0;

  Lookups(const Source& s, int64_t first, int64_t last) {
    if (s.segment->kind == kDense) return;
    for (int64_t row = first; row < last; ++row) {
      int64_t begin, end;
      s.range(row, &begin, &end);
      starts.push_back(begin);
      size_t known = rows.size(), count = size_t(end - begin);
      if (known + count > rows.capacity()) rows.reserve(known + count * size_t(last - row));
      rows.resize(known + count);
      scales.resize(s.data.type == kUint8 ? rows.size() : 0);
      if (s.ids.type == kInt32)
        find(s, row, s.ids.as<int32_t>() + begin, known);
      else
        find(s, row, s.ids.as<int64_t>() + begin, known);
    }
    for (int64_t i = 0; i < std::min<int64_t>(s.ahead, int64_t(rows.size())); ++i)
      __builtin_prefetch(rows[size_t(i)]);
  }

 private:
  template <class Id>
  void find(const Source& s, int64_t row, const Id* ids, size_t known) {
    const int64_t* shifts = s.segment->shifts.data();
    size_t step = s.segment->shifts.size() == 1 ? 0 : 1;
    int64_t size = s.data.rows(), width = s.segment->width;
    bool coded = s.data.type == kUint8;
    const char* table = s.data.as<char>();
    int64_t bytes = width * (coded ? 1 : int64_t(sizeof(float)));
    for (size_t i = 0, count = rows.size() - known; i < count; ++i) {
      int64_t place = int64_t(ids[i]) + shifts[i * step];
      if (place < 0) place += size;  // as ONNX's Gather counts
      if (place < 0 || place >= size)
        throw Error("row " + std::to_string(row) + " looks up id " + std::to_string(ids[i]) +
                    ", beyond a table of " + std::to_string(size) + " rows");
      rows[known + i] = table + place * bytes;
      if (coded) scales[known + i] = s.scales.as<float>() + 2 * place;
    }
  }
};

class Features {
 public:
  Features(const Info* info, bool to_codes) : kernels_(kernels()), to_codes_(to_codes) {
    std::vector<int64_t> plan = Api::integers(info, "plan");
    std::vector<float> factors = Api::floats(info, "factors");
    for (size_t at = 0; at < plan.size();) segments_.push_back(Segment::read(plan, &at));
    if (segments_.empty() || factors.size() != segments_.size())
      throw Error("rankc: the plan of an operator and its factors don't fit");
    for (size_t i = 0; i < segments_.size(); ++i) segments_[i].factor = factors[i];
    plan_pairs(Api::integers(info, "pairs"));
    for (const Segment& s : segments_)
      if (!s.interacts) width_ += s.vectors() * s.width;
    width_ += int64_t(products_.size());
    shape_ = Api::integers(info, "shape");
    int64_t size = 1;
    for (int64_t dim : shape_) size *= dim;
    if (size != width_) throw Error("rankc: the shape of an operator isn't what its plan makes");
    if (to_codes) {
      scale_ = Api::attribute(info, "scale", 1.0f);
      zero_point_ = int(Api::attribute(info, "zero_point", int64_t(0)));
    }
  }

  void compute(Context* context) const {
    std::vector<Tensor> inputs(Api::input_count(context));
    for (size_t i = 0; i < inputs.size(); ++i) inputs[i] = Api::input(context, i);
    Run run{this, {}, 0, 0, nullptr, {}, {}};
    int64_t ids = 0;
    for (const Segment& segment : segments_) {
      run.sources.push_back(source(segment, inputs));
      int64_t rows = run.sources.back().rows();
      if (run.sources.size() > 1 && rows != run.rows)
        throw Error("features of " + std::to_string(run.rows) + " rows beside features of " +
                    std::to_string(rows));
      run.rows = rows;
      ids += run.sources.back().ids_per_row();
    }
    ids = std::max<int64_t>(1, ids);
    for (Source& s : run.sources) {
      int64_t rows_ahead = (kInFlight + ids - 1) / ids;
      s.ahead = std::clamp<int64_t>(s.ids_per_row() * rows_ahead, 1, kInFlight);
    }
    run.rows_per_task = std::clamp<int64_t>(kIdsPerTask / ids, 1, kRowsPerTask);
    std::vector<int64_t> dims{run.rows};
    dims.insert(dims.end(), shape_.begin(), shape_.end());
    run.out = Api::output(context, dims);
    size_t tasks = size_t((run.rows + run.rows_per_task - 1) / run.rows_per_task);
    if (tasks == 1)
      task(&run, 0);
    else if (tasks > 1)
      Api::parallel(context, tasks, task, &run);
    if (!run.error.empty()) throw Error(run.error);
  }

 private:
  struct Run {
    const Features* op;
    std::vector<Source> sources;
    int64_t rows, rows_per_task;
    void* out;
    std::string error;
    std::mutex guard;
  };

  // Finds which blocks of products the pairs need, and where in them each pair is.
  void plan_pairs(const std::vector<int64_t>& pairs) {
    for (const Segment& s : segments_) {
      if (!s.interacts) continue;
      vectors_ += s.vectors();
      stride_ = (s.width + kernels_.lanes - 1) / kernels_.lanes * kernels_.lanes;
    }
    int64_t block_rows = kernels_.lanes / 4, across = vectors_ / 4 + 1;
    std::vector<int32_t> blocks(size_t((vectors_ / block_rows + 1) * across), -1);
    for (size_t p = 0; p + 1 < pairs.size(); p += 2) {
      int64_t row = std::max(pairs[p], pairs[p + 1]), column = std::min(pairs[p], pairs[p + 1]);
      if (column < 0 || row >= vectors_) throw Error("rankc: a pair of an operator is no pair");
      int32_t& block = blocks[size_t(row / block_rows * across + column / 4)];
      if (block < 0) {
        block = int32_t(blocks_.size() / 2);
        blocks_.push_back(int32_t(row / block_rows * block_rows));
        blocks_.push_back(int32_t(column / 4 * 4));
      }
      products_.push_back(
          int32_t(block * kernels_.lanes + row % block_rows * 4 + column % 4));
    }
  }

  static Source source(const Segment& segment, const std::vector<Tensor>& inputs) {
    auto input = [&](int64_t index) {
      if (index >= int64_t(inputs.size())) throw Error("rankc: an operator lacks an input");
      return index < 0 ? Tensor() : inputs[size_t(index)];
    };
    Source s{&segment,
             input(segment.source),
             input(segment.ids),
             input(segment.scales),
             input(segment.weights),
             input(segment.divisor),
             input(segment.offsets)};
    bool dense = segment.kind == kDense, listed = segment.kind == kOffsets;
    bool fits = s.data.type == (segment.scales < 0 ? kFloat : kUint8) &&
                (dense ? s.data.stride() >= segment.width * (segment.first_id + segment.vectors())
                       : s.data.stride() == segment.width) &&
                (dense || segment.shifts.size() == size_t(listed ? 1 : segment.per_row)) &&
                (segment.scales < 0 ||
                 (s.scales.type == kFloat && s.scales.rows() == s.data.rows() &&
                  s.scales.stride() == 2)) &&
                (segment.weights < 0 || s.weights.type == kFloat) &&
                (dense || s.ids.type == kInt32 || s.ids.type == kInt64) &&
                (segment.kind != kBags || segment.first_id + segment.per_row <= s.ids.stride()) &&
                (segment.kind != kBags || segment.weights < 0 ||
                 (s.weights.rows() == s.ids.rows() &&
                  segment.first_weight + segment.per_row <= s.weights.stride())) &&
                (!listed || segment.weights < 0 || s.weights.rows() == s.ids.rows()) &&
                (segment.divisor < 0 ||
                 (s.divisor.type == kFloat && s.divisor.rows() == s.rows()));
    if (!fits) throw Error("rankc: an input isn't what the plan of its operator says");
    return s;
  }

  static void task(void* data, size_t index) {
    Run* run = static_cast<Run*>(data);
    int64_t first = int64_t(index) * run->rows_per_task;
    try {
      run->op->rows(*run, first, std::min(run->rows, first + run->rows_per_task));
    } catch (const std::exception& error) {
      std::lock_guard<std::mutex> lock(run->guard);
      run->error = error.what();
    }
  }

  void rows(const Run& run, int64_t first, int64_t last) const {
    std::vector<Lookups> lookups;
    lookups.reserve(run.sources.size());
    for (const Source& s : run.sources) lookups.emplace_back(s, first, last);
    // Blocks of products read a few vectors more than there are.
    std::vector<float> vectors(size_t((vectors_ + 4) * stride_));
    std::vector<float> products(blocks_.size() / 2 * size_t(kernels_.lanes));
    std::vector<float> floats(size_t(to_codes_ ? width_ : 0));
    for (int64_t row = first; row < last; ++row) {
      float* start = to_codes_ ? floats.data() : static_cast<float*>(run.out) + row * width_;
      float *out = start, *dots = nullptr, *vector = vectors.data();
      for (size_t i = 0; i < segments_.size(); ++i) {
        const Segment& s = segments_[i];
        if (s.interacts && dots == nullptr) {
          dots = out;
          out += products_.size();
        }
        float*& to = s.interacts ? vector : out;
        to = vectors_of(run.sources[i], lookups[i], row, first, to, s.interacts ? stride_ : s.width);
      }
      if (dots != nullptr) {
        kernels_.dot_blocks(vectors.data(), int(stride_), blocks_.data(), int(blocks_.size() / 2),
                            products.data());
        for (size_t p = 0; p < products_.size(); ++p) dots[p] = products[size_t(products_[p])];
      }
      if (to_codes_)
        kernels_.quantize(start, width_, scale_, zero_point_,
                          static_cast<uint8_t*>(run.out) + row * width_);
    }
  }

  // Writes a segment's vectors, `stride` floats apart, and returns the place behind them.
  float* vectors_of(const Source& s, Lookups& lookups, int64_t row, int64_t first, float* out,
                    int64_t stride) const {
    const Segment& segment = *s.segment;
    if (segment.kind == kDense) {
      const float* in =
          s.data.as<float>() + row * s.data.stride() + segment.first_id * segment.width;
      for (int64_t v = 0; v < segment.vectors(); ++v, out += stride, in += segment.width)
        std::memcpy(out, in, size_t(segment.width) * sizeof(float));
      return out;
    }
    const float* weights = s.weights_of(row, lookups.starts[size_t(row - first)]);
    float factor = s.factor_of(row);
    for (int64_t bag : segment.bags) {
      if (segment.kind == kOffsets) {
        int64_t begin, end;
        s.range(row, &begin, &end);
        bag = end - begin;
      }
      const void* const* rows = lookups.rows.data() + lookups.at;
      Ahead ahead{s.ahead, int64_t(lookups.rows.size() - lookups.at)};
      if (s.data.type == kUint8)
        kernels_.pool_codes(rows, lookups.scales.data() + lookups.at, weights, bag, ahead,
                            int(segment.width), factor, out);
      else
        kernels_.pool_floats(rows, weights, bag, ahead, int(segment.width), factor, out);
      lookups.at += size_t(bag);
      if (weights != nullptr) weights += bag;
      out += stride;
    }
    return out;
  }

  const Kernels& kernels_;
  const bool to_codes_;
  std::vector<Segment> segments_;
  std::vector<int64_t> shape_;  // of the result, behind the batch
  int64_t width_ = 0, vectors_ = 0, stride_ = 0;
  std::vector<int32_t> blocks_, products_;
  float scale_ = 1.0f;
  int zero_point_ = 0;
};

template <bool kToCodes>
Operator make_operator() {
  Operator op{};
  op.version = kApiVersion;
  op.name = [](const Operator*) { return kToCodes ? "FeatureCodes" : "Features"; };
  op.provider = [](const Operator*) -> const char* { return nullptr; };
  op.input_type = [](const Operator*, size_t) -> int { return kAnyType; };
  op.input_count = [](const Operator*) -> size_t { return 1; };
  op.output_type = [](const Operator*, size_t) -> int { return kToCodes ? kUint8 : kFloat; };
  op.output_count = [](const Operator*) -> size_t { return 1; };
  op.input_arity = [](const Operator*, size_t) -> int { return kVariadic; };
  op.output_arity = [](const Operator*, size_t) -> int { return kRequired; };
  op.input_memory = [](const Operator*, size_t) { return 0; };
  op.variadic_inputs_min = [](const Operator*) { return 1; };
  op.variadic_inputs_alike = [](const Operator*) { return 0; };
  op.variadic_outputs_min = op.variadic_inputs_min;
  op.variadic_outputs_alike = op.variadic_inputs_alike;
  op.create = [](const Operator*, const void*, const Info* info, void** kernel) {
    return guarded([&] { *kernel = new Features(info, kToCodes); });
  };
  op.compute = [](void* kernel, Context* context) {
    return guarded([&] { static_cast<const Features*>(kernel)->compute(context); });
  };
  op.destroy = [](void* kernel) { delete static_cast<Features*>(kernel); };
  op.first_version = [](const Operator*) { return 1; };
  op.last_version = [](const Operator*) { return 1; };
  return op;
}

}  // namespace

std::vector<const Operator*> feature_operators() {
  static const Operator floats = make_operator<false>(), codes = make_operator<true>();
  return {&floats, &codes};
}

}  // namespace rankc
