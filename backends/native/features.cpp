// Looks rows up in tables, pools them, puts them beside dense features, multiplies pairs of them,
// and rounds the result to codes: what ONNX Runtime does in a dozen operators, each of which writes
// its result to memory.
//
// A row of the result is a list of segments. A segment is some vectors: of a dense input, or rows
// of a table, pooled by bags. Segments that interact aren't written; where the first of them would
// be come the products of pairs of their vectors: dot products, or vectors where the attribute
// `elementwise` is 1. The attribute `plan` lists the segments, see Segment::read;
// backends/native/fusions.py writes it.

#include "features.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>

#include "kernels.h"

namespace rankc {
namespace {

constexpr int64_t kRowsPerTask = 128;
constexpr int64_t kIdsPerTask = 4096;
// How many lookups lie between the fetch of a table's row and its use.
constexpr int64_t kInFlight = 24;
// Half of a first cache of 32 KiB.
constexpr int64_t kKeptFloats = 4096;
// What a plan may ask for at most, so that sizes made of it are no surprise: numbers of a vector,
// of a row of the result, of the vectors that interact; columns of an input.
constexpr int64_t kWidest = int64_t(1) << 20;
constexpr int64_t kWidestRow = int64_t(1) << 22;
constexpr int64_t kMostInteracting = 1 << 13;
constexpr int64_t kMostColumns = int64_t(1) << 31;

// Where the vectors come from: a dense input; a table, by bags of fixed sizes in a matrix of ids;
// a table, by one bag a row, which offsets cut from a list of ids.
enum Kind : int64_t { kDense = 0, kBags = 1, kOffsets = 2 };

struct Segment {
  int64_t interacts, kind, coding, width;
  // Which inputs of the operator it reads; -1 for none.
  int64_t source, ids, scales, weights, divisor, offsets;
  int64_t first_id, first_weight;  // columns; of a dense input, the first vector
  // Ids of each vector, and what is added to each id.
  std::vector<int64_t> bags, shifts;
  // Rows that each id's own feature has, 0 where that isn't known; empty where none is. Less than 0,
  // negative ids count from the end of that many.
  std::vector<int64_t> limits;
  float factor = 1.0f;
  int64_t per_row = 0;
  bool plain = false;  // whether its vectors are rows of a table of floats as they are

  static Segment read(const std::vector<int64_t>& plan, size_t* at) {
    auto next = [&]() {
      if (*at >= plan.size()) throw Error("rankc: the plan of an operator is cut short");
      return plan[(*at)++];
    };
    Segment s;
    for (int64_t* field : {&s.interacts, &s.kind, &s.coding, &s.width, &s.source, &s.ids, &s.scales,
                           &s.weights, &s.divisor, &s.offsets, &s.first_id, &s.first_weight})
      *field = next();
    for (std::vector<int64_t>* list : {&s.bags, &s.shifts}) {
      int64_t size = next();
      if (size < 0 || size > int64_t(plan.size() - *at))
        throw Error("rankc: the plan of an operator is cut short");
      list->resize(size_t(size));
      for (int64_t& value : *list) value = next();
    }
    s.check();
    return s;
  }

  // What can be told of a segment before its tensors are there. Model files come from anywhere.
  void check() {
    auto require = [](bool fits, const char* what) {
      if (!fits) throw Error(std::string("rankc: the plan of an operator has ") + what);
    };
    auto within = [](int64_t value, int64_t least, int64_t most) {
      return least <= value && value <= most;
    };
    require(within(interacts, 0, 1), "a segment that interacts neither nor not");
    require(within(kind, kDense, kOffsets), "a segment of no kind");
    require(within(coding, 0, kCodings - 1), "a table of no coding");
    require(within(width, 1, kWidest), "a vector of no width");
    for (int64_t input : {source, ids, scales, weights, divisor, offsets})
      require(within(input, -1, kMostColumns), "an input of no number");
    for (int64_t column : {first_id, first_weight})
      require(within(column, 0, kMostColumns), "a column of no number");
    require(!bags.empty() && vectors() <= kMostColumns, "a segment of no vectors");
    for (int64_t bag : bags) {
      require(within(bag, 0, kMostColumns), "a bag of no size");
      per_row += bag;
      require(per_row <= kMostColumns, "bags of too many ids");
    }
    bool dense = kind == kDense, listed = kind == kOffsets;
    bool coded = coding == kBytes || coding == kNibbles;
    require(source >= 0 && dense == (ids < 0), "a segment without its table or its ids");
    require(listed == (offsets >= 0), "offsets where there are none");
    require(coded == (scales >= 0), "scales where there are none");
    require(!dense || (coding == kFloats && weights < 0 && divisor < 0),
            "weights of a dense feature");
    require(!listed || (vectors() == 1 && within(first_id, 0, 1)), "more than one list of ids");
    require(int64_t(shifts.size()) == (dense ? 0 : listed ? 1 : per_row), "shifts of other ids");
  }

  int64_t vectors() const { return int64_t(bags.size()); }

  bool is_plain() const {
    return kind == kBags && coding == kFloats && weights < 0 && divisor < 0 && factor == 1.0f &&
           std::all_of(bags.begin(), bags.end(), [](int64_t bag) { return bag == 1; });
  }
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
    bool last = row + 1 == rows();
    // The first row's ids begin the list, and the last row's end it.
    if (*begin < 0 || *end < *begin || *end > ids.rows() || (row == 0 && *begin != 0) ||
        (last && *end != ids.rows()))
      throw Error("row " + std::to_string(row) + " has the ids from " + std::to_string(*begin) +
                  " to " + std::to_string(*end) + " of a list of " + std::to_string(ids.rows()));
  }

  float factor_of(int64_t row) const {
    return segment->factor / divisor.as<float>()[row * divisor.stride()];
  }
};

// What some rows of the batch look up in one segment's table, in order.
struct Lookups {
  std::vector<const void*> rows, scales;
  std::vector<float> weights;
  std::vector<float> factors;  // of each row of the batch, if there is a divisor
  std::vector<int64_t> sizes;  // of each row of the batch, if offsets say it
  size_t at = 0;

  Lookups(const Source& s, int64_t first, int64_t last) {
    const Segment& segment = *s.segment;
    if (segment.kind == kDense) return;
    if (segment.divisor >= 0)
      for (int64_t row = first; row < last; ++row) factors.push_back(s.factor_of(row));
    if (segment.kind == kOffsets) {
      for (int64_t row = first; row < last; ++row) {
        int64_t begin, end;
        s.range(row, &begin, &end);
        sizes.push_back(end - begin);
        find(s, row, begin, end - begin);
      }
    } else {
      size_t count = size_t((last - first) * segment.per_row);
      rows.reserve(count);
      if (segment.scales >= 0) scales.reserve(count);
      for (int64_t row = first; row < last; ++row)
        find(s, row, row * s.ids.stride() + segment.first_id, segment.per_row);
    }
    for (size_t i = 0; i < std::min(size_t(s.ahead), rows.size()); ++i)
      __builtin_prefetch(rows[i]);
  }

 private:
  void find(const Source& s, int64_t row, int64_t begin, int64_t count) {
    if (s.ids.type == kInt32)
      find_as(s, row, s.ids.as<int32_t>() + begin, count);
    else
      find_as(s, row, s.ids.as<int64_t>() + begin, count);
    if (s.segment->weights < 0) return;
    bool listed = s.segment->kind == kOffsets;
    const float* from = s.weights.as<float>() +
                        (listed ? begin : row * s.weights.stride() + s.segment->first_weight);
    weights.insert(weights.end(), from, from + count);
  }

  template <class Id>
  void find_as(const Source& s, int64_t row, const Id* ids, int64_t count) {
    const int64_t* shifts = s.segment->shifts.data();
    int64_t step = s.segment->kind == kOffsets ? 0 : 1, size = s.data.rows();
    int64_t bytes = row_bytes(s.segment->coding, s.segment->width);
    int64_t scale_bytes = s.segment->coding == kBytes ? 8 : 4;
    const char *table = s.data.as<char>(), *both = s.scales.as<char>();
    const int64_t* limits = s.segment->limits.empty() ? nullptr : s.segment->limits.data();
    for (int64_t i = 0; i < count; ++i) {
      int64_t place, id = int64_t(ids[i]), limit = limits == nullptr ? 0 : limits[i * step];
      int64_t counted = id;
      if (limit < 0) {
        limit = -limit;
        if (id < 0) counted += limit;
      }
      bool wraps = __builtin_add_overflow(counted, shifts[i * step], &place);
      if (limit == 0 && place < 0) place += size;  // as ONNX's Gather counts
      if (wraps || place < 0 || place >= size || (limit > 0 && (counted < 0 || counted >= limit)))
        throw Error("row " + std::to_string(row) + " looks up id " + std::to_string(id) +
                    ", beyond a table of " + std::to_string(limit > 0 ? limit : size) + " rows");
      rows.push_back(table + place * bytes);
      if (both != nullptr) scales.push_back(both + place * scale_bytes);
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
    for (size_t i = 0; i < segments_.size(); ++i) {
      segments_[i].factor = factors[i];
      segments_[i].plain = segments_[i].is_plain();
    }
    take_limits(Api::integers(info, "limits"));
    elementwise_ = Api::attribute(info, "elementwise", int64_t(0)) != 0;
    plan_pairs(Api::integers(info, "pairs"));
    place_segments();
    shape_ = Api::integers(info, "shape");
    int64_t size = 1;
    for (int64_t dim : shape_) {
      if (dim < 0 || dim > kWidestRow) throw Error("rankc: the shape of an operator is none");
      size = product(size, dim);
    }
    if (size != width_) throw Error("rankc: the shape of an operator isn't what its plan makes");
    if (to_codes) {
      scale_ = Api::attribute(info, "scale", 1.0f);
      int64_t zero_point = Api::attribute(info, "zero_point", int64_t(0));
      if (!(scale_ > 0.0f) || !std::isfinite(scale_) || zero_point < 0 || zero_point > 255)
        throw Error("rankc: the scale or the zero point of an operator's codes is none");
      zero_point_ = int(zero_point);
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

  // Gives each segment its part of the attribute `limits`, one for each of its shifts.
  void take_limits(const std::vector<int64_t>& limits) {
    if (limits.empty()) return;
    size_t at = 0;
    for (Segment& s : segments_) {
      if (s.shifts.size() > limits.size() - at) throw Error("rankc: an operator lacks limits");
      s.limits.assign(limits.begin() + int64_t(at), limits.begin() + int64_t(at + s.shifts.size()));
      at += s.shifts.size();
    }
    for (int64_t limit : limits)
      if (limit < -kMostColumns) throw Error("rankc: a limit of an operator's ids is none");
    if (at != limits.size()) throw Error("rankc: an operator has limits of other ids");
  }

  // Finds where in a row each segment goes; the products are where the first that interacts is.
  void place_segments() {
    int64_t vectors = 0;
    pairs_place_ = -1;
    for (const Segment& s : segments_) {
      if (s.interacts && pairs_place_ < 0) {
        pairs_place_ = width_;
        width_ += elementwise_ ? int64_t(pairs_.size()) / 2 * s.width : int64_t(products_.size());
      }
      places_.push_back(s.interacts ? vectors : width_);
      (s.interacts ? vectors : width_) += s.vectors() * (s.interacts ? stride_ : s.width);
      if (width_ > kWidestRow) throw Error("rankc: a row of an operator is too wide");
    }
  }

  // Finds which blocks of dot products the pairs need, and where in them each pair is.
  void plan_pairs(const std::vector<int64_t>& pairs) {
    for (const Segment& s : segments_) {
      if (!s.interacts) continue;
      if (vectors_ > 0 && s.width != pair_width_)
        throw Error("rankc: vectors of several widths interact");
      vectors_ += s.vectors();
      if (vectors_ > kMostInteracting || product(vectors_, s.width) > kWidestRow)
        throw Error("rankc: too many vectors of an operator interact");
      pair_width_ = s.width;
      stride_ = (s.width + kernels_.lanes - 1) / kernels_.lanes * kernels_.lanes;
    }
    for (int64_t one : pairs)
      if (one < 0 || one >= vectors_) throw Error("rankc: a pair of an operator is no pair");
    if (pairs.size() % 2 != 0 || int64_t(pairs.size()) > 2 * kWidestRow)
      throw Error("rankc: the pairs of an operator are no pairs");
    if (elementwise_) {
      pairs_.assign(pairs.begin(), pairs.end());
      return;
    }
    int64_t block_rows = kernels_.lanes / 4, across = vectors_ / 4 + 1;
    std::vector<int32_t> blocks(size_t((vectors_ / block_rows + 1) * across), -1);
    for (size_t p = 0; p + 1 < pairs.size(); p += 2) {
      int64_t row = std::max(pairs[p], pairs[p + 1]), column = std::min(pairs[p], pairs[p + 1]);
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
      if (index < 0) return Tensor();
      if (index >= int64_t(inputs.size()) || inputs[size_t(index)].type == 0)
        throw Error("rankc: an operator lacks an input");
      return inputs[size_t(index)];
    };
    Source s{&segment,
             input(segment.source),
             input(segment.ids),
             input(segment.scales),
             input(segment.weights),
             input(segment.divisor),
             input(segment.offsets)};
    bool dense = segment.kind == kDense, listed = segment.kind == kOffsets;
    bool coded = segment.coding == kBytes || segment.coding == kNibbles;
    const int types[] = {kFloat, kHalf, kUint8, kUint8};
    int64_t across = segment.coding == kNibbles ? (segment.width + 1) / 2 : segment.width;
    bool fits = s.data.type == types[segment.coding] &&
                (dense ? s.data.stride() / segment.width >= segment.first_id + segment.vectors()
                       : s.data.stride() == across) &&
                (!coded || (s.scales.type == (segment.coding == kBytes ? kFloat : kHalf) &&
                            s.scales.rows() == s.data.rows() && s.scales.stride() == 2)) &&
                (segment.weights < 0 || s.weights.type == kFloat) &&
                (dense || s.ids.type == kInt32 || s.ids.type == kInt64) &&
                (segment.kind != kBags || segment.first_id + segment.per_row <= s.ids.stride()) &&
                (segment.kind != kBags || segment.weights < 0 ||
                 (s.weights.rows() == s.ids.rows() &&
                  segment.first_weight + segment.per_row <= s.weights.stride())) &&
                (!listed ||
                 ((s.offsets.type == kInt32 || s.offsets.type == kInt64) &&
                  s.offsets.stride() == 1 && s.ids.stride() == 1 && s.rows() >= 0)) &&
                (!listed || segment.weights < 0 ||
                 (s.weights.stride() == 1 && s.weights.rows() == s.ids.rows())) &&
                (segment.divisor < 0 || (s.divisor.type == kFloat && s.divisor.stride() >= 1 &&
                                         s.divisor.rows() == s.rows()));
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

  // Makes some rows of the batch: segment by segment, a few rows at a time where they are kept in
  // between, so that what is kept stays in the first cache.
  void rows(const Run& run, int64_t first, int64_t last) const {
    std::vector<Lookups> lookups;
    lookups.reserve(run.sources.size());
    for (const Source& s : run.sources) lookups.emplace_back(s, first, last);
    // Blocks of products read a few vectors more than there are.
    int64_t floats = to_codes_ ? width_ : 0, vectors = vectors_ ? (vectors_ + 4) * stride_ : 0;
    int64_t at_once = last - first;
    if (floats + vectors > 0)
      at_once = std::clamp<int64_t>(kKeptFloats / (floats + vectors), 1, at_once);
    std::vector<float> kept_floats(size_t(floats * at_once)), kept(size_t(vectors * at_once));
    std::vector<float> products(blocks_.size() / 2 * size_t(kernels_.lanes));
    for (int64_t row = first; row < last; row += at_once) {
      int64_t count = std::min(at_once, last - row);
      float* start = to_codes_ ? kept_floats.data() : static_cast<float*>(run.out) + row * width_;
      for (size_t i = 0; i < segments_.size(); ++i) {
        const Segment& s = segments_[i];
        if (s.interacts)
          fill(run.sources[i], lookups[i], first, row, count, kept.data() + places_[i], vectors,
               stride_);
        else
          fill(run.sources[i], lookups[i], first, row, count, start + places_[i], width_, s.width);
      }
      for (int64_t i = 0; i < count && !blocks_.empty(); ++i) {
        kernels_.dot_blocks(kept.data() + i * vectors, int(stride_), blocks_.data(),
                            int(blocks_.size() / 2), products.data());
        float* dots = start + i * width_ + pairs_place_;
        for (size_t p = 0; p < products_.size(); ++p) dots[p] = products[size_t(products_[p])];
      }
      for (int64_t i = 0; i < count && !pairs_.empty(); ++i)
        kernels_.multiply_pairs(kept.data() + i * vectors, int(stride_), pairs_.data(),
                                int(pairs_.size() / 2), int(pair_width_),
                                start + i * width_ + pairs_place_);
      if (to_codes_)
        kernels_.quantize(start, count * width_, scale_, zero_point_,
                          static_cast<uint8_t*>(run.out) + row * width_);
    }
  }

  // Writes a segment's vectors, `apart` floats apart, for some rows, `across` floats apart.
  void fill(const Source& s, Lookups& lookups, int64_t first, int64_t row, int64_t count,
            float* out, int64_t across, int64_t apart) const {
    const Segment& segment = *s.segment;
    int64_t vectors = segment.vectors(), width = segment.width;
    if (segment.kind == kDense) {
      const float* in = s.data.as<float>() + row * s.data.stride() + segment.first_id * width;
      for (int64_t i = 0; i < count; ++i, out += across, in += s.data.stride())
        for (int64_t v = 0; v < vectors; ++v)
          std::memcpy(out + v * apart, in + v * width, size_t(width) * sizeof(float));
      return;
    }
    auto pool = kernels_.pool[segment.coding];
    auto bags_at = [&](size_t at) {
      return Bags{lookups.rows.data() + at,
                  lookups.scales.data() + at,
                  lookups.weights.empty() ? nullptr : lookups.weights.data() + at,
                  nullptr,
                  nullptr,
                  segment.bags[0],
                  vectors,
                  segment.factor,
                  s.ahead,
                  int64_t(lookups.rows.size() - at)};
    };
    if (segment.plain) {
      // Vectors that lie side by side from row to row as well are one list.
      bool listed = vectors == 1 || across == vectors * apart;
      for (int64_t i = 0; i < (listed ? 1 : count); ++i, out += across) {
        Bags bags = bags_at(lookups.at);
        bags.count = listed ? count * vectors : vectors;
        kernels_.copy(bags, int(width), out, vectors == 1 ? across : apart);
        lookups.at += size_t(bags.count);
      }
      return;
    }
    if (vectors == 1) {
      Bags bags = bags_at(lookups.at);
      bags.count = count;
      if (!lookups.factors.empty()) bags.factors = lookups.factors.data() + (row - first);
      if (!lookups.sizes.empty()) bags.sizes = lookups.sizes.data() + (row - first);
      pool(bags, int(width), out, across);
      for (int64_t i = 0; i < count; ++i)
        lookups.at += size_t(bags.sizes == nullptr ? bags.size : bags.sizes[i]);
      return;
    }
    for (int64_t i = 0; i < count; ++i, out += across) {
      Bags bags = bags_at(lookups.at);
      bags.sizes = segment.bags.data();
      if (!lookups.factors.empty()) bags.factor = lookups.factors[size_t(row - first + i)];
      pool(bags, int(width), out, apart);
      lookups.at += size_t(segment.per_row);
    }
  }

  const Kernels& kernels_;
  const bool to_codes_;
  std::vector<Segment> segments_;
  std::vector<int64_t> shape_;  // of the result, behind the batch
  std::vector<int64_t> places_;  // of each segment, in a row or among the vectors that interact
  int64_t width_ = 0, vectors_ = 0, stride_ = 0, pair_width_ = 0, pairs_place_ = 0;
  bool elementwise_ = false;
  std::vector<int32_t> blocks_, products_;  // of dot products
  std::vector<int32_t> pairs_;              // of elementwise ones
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
