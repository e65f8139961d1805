#include "rowwise.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace rankc {
namespace {

// Zero times every value adds up to zero, and to NaN where one is NaN or infinite: such a row has no
// steps, and its outputs are NaN, as they would be in float. Added to `low` it makes them so.

// Below this a row is one value: it has no steps, and dividing by zero would be no code.
constexpr float kSmallestStep = std::numeric_limits<float>::min();

// Sixteen columns of the weight at a time, inputs in pairs: what every compiler turns into
// multiplications of 16-bit integers. Without AVX512-VNNI this is the kernel.
class Pairs : public Packed {
 public:
  explicit Pairs(const RowwiseWeight& w)
      : Packed(w),
        pairs_((w.inputs + 1) / 2),
        blocks_((w.outputs + kWidth - 1) / kWidth),
        codes_(size_t(blocks_ * pairs_ * kWidth * 2)),
        scale_(size_t(blocks_ * kWidth)),
        low_(scale_.size()),
        bias_(scale_.size()),
        kept_(w.kept, w.kept + w.kept_count),
        kept_weight_(kept_.size() * scale_.size()) {
    if (w.columns != nullptr) columns_.assign(w.columns, w.columns + w.inputs);
    for (int64_t n = 0; n < outputs; ++n) {
      int64_t sum = 0;
      for (int64_t k = 0; k < inputs; ++k) {
        int8_t code = w.codes[n * inputs + k];
        sum += code;
        codes_[size_t(((n / kWidth * pairs_ + k / 2) * kWidth + n % kWidth) * 2 + k % 2)] = code;
      }
      scale_[size_t(n)] = w.scale[n];
      low_[size_t(n)] = w.scale[n] * float(sum);
      bias_[size_t(n)] = w.bias == nullptr ? 0.0f : w.bias[n];
      for (size_t j = 0; j < kept_.size(); ++j)
        kept_weight_[j * scale_.size() + size_t(n)] =
            w.kept_weight[n * w.kept_count + int64_t(j)];
    }
  }

  void run(const float* x, int64_t count, float* out, bool relu) const override {
    std::vector<int16_t> steps(size_t(pairs_ * 2));
    std::vector<float> row(size_t(blocks_ * kWidth));
    for (int64_t r = 0; r < count; ++r, x += inputs, out += outputs) {
      float step, low;
      quantize(x, steps.data(), &step, &low);
      for (int64_t block = 0; block < blocks_; ++block)
        multiply(steps.data(), block, step, low, row.data() + block * kWidth);
      for (size_t j = 0; j < kept_.size(); ++j) {
        const float* weight = kept_weight_.data() + j * scale_.size();
        for (int64_t n = 0; n < outputs; ++n) row[size_t(n)] += x[kept_[j]] * weight[n];
      }
      for (int64_t n = 0; n < outputs; ++n)
        out[n] = relu ? std::max(row[size_t(n)], 0.0f) : row[size_t(n)];
    }
  }

 private:
  static constexpr int64_t kWidth = 16;

  void quantize(const float* x, int16_t* steps, float* step, float* low) const {
    auto value = [&](int64_t k) { return columns_.empty() ? x[k] : x[k] * columns_[size_t(k)]; };
    float least = value(0), most = least, none = 0.0f;
    for (int64_t k = 0; k < inputs; ++k) {
      least = std::min(least, value(k));
      most = std::max(most, value(k));
      none += 0.0f * value(k);
    }
    *low = least + none;
    *step = (most - least) / 255.0f;
    float inverse = 1.0f / std::max(*step, kSmallestStep);
    for (int64_t k = 0; k < inputs; ++k) {
      // The difference of finite values may be infinite; NaN becomes 0.
      float place = __builtin_rintf((value(k) - least) * inverse);
      steps[k] = place > 255.0f ? 255 : place > 0.0f ? int16_t(place) : 0;
    }
  }

  // Integers that add up exactly, whatever the order.
  void multiply(const int16_t* steps, int64_t block, float step, float low, float* out) const {
    int32_t total[kWidth] = {};
    const int16_t* codes = codes_.data() + block * pairs_ * kWidth * 2;
    for (int64_t p = 0; p < pairs_; ++p, codes += kWidth * 2)
      for (int64_t n = 0; n < kWidth; ++n)
        total[n] += int32_t(codes[2 * n]) * steps[2 * p] +
                    int32_t(codes[2 * n + 1]) * steps[2 * p + 1];
    for (int64_t n = 0; n < kWidth; ++n) {
      size_t at = size_t(block * kWidth + n);
      out[n] = float(total[n]) * scale_[at] * step + low_[at] * low + bias_[at];
    }
  }

  int64_t pairs_, blocks_;
  std::vector<int16_t> codes_;
  std::vector<float> scale_, low_, bias_;
  std::vector<int64_t> kept_;
  std::vector<float> kept_weight_, columns_;
};

#if defined(__x86_64__)

#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#define VNNI_INLINE VNNI inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

// Memory that starts at a cache line, zero at first.
template <class T>
class Lines {
 public:
  explicit Lines(size_t count) : memory_(count * sizeof(T) + 64) {}
  T* data() { return reinterpret_cast<T*>((uintptr_t(memory_.data()) + 63) & ~uintptr_t(63)); }
  const T* data() const { return const_cast<Lines*>(this)->data(); }

 private:
  std::vector<char> memory_;
};

// 64 columns of the weight at a time, four inputs of a column side by side: the order of vpdpbusd.
class Quads : public Packed {
 public:
  explicit Quads(const RowwiseWeight& w)
      : Packed(w),
        depth_((w.inputs + 3) / 4 * 4),
        blocks_((w.outputs + kWidth - 1) / kWidth),
        width_(blocks_ * kWidth),
        codes_(size_t(width_ * depth_)),
        scale_(size_t(width_)),
        low_(size_t(width_)),
        bias_(size_t(width_)),
        columns_(size_t(w.columns == nullptr ? 0 : w.inputs)),
        kept_(w.kept, w.kept + w.kept_count),
        kept_weight_(size_t(w.kept_count * width_)) {
    scaled_ = w.columns != nullptr;
    if (scaled_) std::memcpy(columns_.data(), w.columns, size_t(inputs) * sizeof(float));
    for (int64_t n = 0; n < outputs; ++n) {
      int64_t sum = 0, block = n / kWidth, vector = n % kWidth / 16, lane = n % 16;
      for (int64_t k = 0; k < inputs; ++k) {
        int8_t code = w.codes[n * inputs + k];
        sum += code;
        codes_.data()[((block * depth_ / 4 + k / 4) * 4 + vector) * 64 + lane * 4 + k % 4] = code;
      }
      scale_.data()[n] = w.scale[n];
      low_.data()[n] = w.scale[n] * float(sum);
      bias_.data()[n] = w.bias == nullptr ? 0.0f : w.bias[n];
      for (int64_t j = 0; j < w.kept_count; ++j)
        kept_weight_.data()[j * width_ + n] = w.kept_weight[n * w.kept_count + j];
    }
  }

  void run(const float* x, int64_t count, float* out, bool relu) const override {
    std::vector<uint8_t> steps(size_t(count * depth_ + 64));
    std::vector<float> step(static_cast<size_t>(count)), low(static_cast<size_t>(count));
    for (int64_t r = 0; r < count; ++r)
      quantize(x + r * inputs, steps.data() + r * depth_, &step[size_t(r)], &low[size_t(r)]);
    for (int64_t block = 0; block < blocks_; ++block) {
      int64_t left = outputs - block * kWidth, at = 0;
      auto rows = [&](auto tile, int64_t tall) {
        (this->*tile)({steps.data() + at * depth_, x + at * inputs, block, &step[size_t(at)],
                       &low[size_t(at)], out + at * outputs, relu});
        at += tall;
      };
      int vectors = int(std::min<int64_t>(kWidth, left) + 15) / 16;
      while (at + 6 <= count) rows(tile_of(6, vectors), 6);
      if (at < count) rows(tile_of(int(count - at), vectors), count - at);
    }
  }

 private:
  static constexpr int64_t kWidth = 64;

  struct Place {
    const uint8_t* steps;
    const float* x;
    int64_t block;
    const float *step, *low;
    float* out;
    bool relu;
  };
  using Tile = void (Quads::*)(const Place&) const;

  static Tile tile_of(int rows, int vectors) {
    static const Tile tiles[6][4] = {
        {&Quads::tile<1, 1>, &Quads::tile<1, 2>, &Quads::tile<1, 3>, &Quads::tile<1, 4>},
        {&Quads::tile<2, 1>, &Quads::tile<2, 2>, &Quads::tile<2, 3>, &Quads::tile<2, 4>},
        {&Quads::tile<3, 1>, &Quads::tile<3, 2>, &Quads::tile<3, 3>, &Quads::tile<3, 4>},
        {&Quads::tile<4, 1>, &Quads::tile<4, 2>, &Quads::tile<4, 3>, &Quads::tile<4, 4>},
        {&Quads::tile<5, 1>, &Quads::tile<5, 2>, &Quads::tile<5, 3>, &Quads::tile<5, 4>},
        {&Quads::tile<6, 1>, &Quads::tile<6, 2>, &Quads::tile<6, 3>, &Quads::tile<6, 4>},
    };
    return tiles[rows - 1][vectors - 1];
  }

  VNNI_INLINE __m512 value(const float* x, int64_t k, __mmask16 lanes) const {
    __m512 v = _mm512_maskz_loadu_ps(lanes, x + k);
    return scaled_ ? _mm512_mul_ps(v, _mm512_maskz_loadu_ps(lanes, columns_.data() + k)) : v;
  }

  VNNI void quantize(const float* x, uint8_t* steps, float* step, float* low) const {
    __m512 least = _mm512_set1_ps(INFINITY), most = _mm512_set1_ps(-INFINITY);
    __m512 zero = _mm512_setzero_ps(), none = zero;
    int64_t whole = inputs / 16 * 16;
    __mmask16 rest = __mmask16((1u << (inputs - whole)) - 1);
    for (int64_t k = 0; k < whole; k += 16) {
      __m512 v = value(x, k, 0xFFFF);
      least = _mm512_min_ps(least, v);
      most = _mm512_max_ps(most, v);
      none = _mm512_fmadd_ps(zero, v, none);
    }
    if (rest) {
      __m512 v = value(x, whole, rest);
      least = _mm512_mask_min_ps(least, rest, least, v);
      most = _mm512_mask_max_ps(most, rest, most, v);
      none = _mm512_fmadd_ps(zero, v, none);
    }
    float lowest = _mm512_reduce_min_ps(least);
    *low = lowest + _mm512_reduce_add_ps(none);
    *step = (_mm512_reduce_max_ps(most) - lowest) / 255.0f;
    __m512 start = _mm512_set1_ps(lowest);
    __m512 inverse = _mm512_set1_ps(1.0f / std::max(*step, kSmallestStep));
    for (int64_t k = 0; k < whole; k += 16)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(steps + k),
                       codes_of(value(x, k, 0xFFFF), start, inverse));
    if (rest) _mm_mask_storeu_epi8(steps + whole, rest, codes_of(value(x, whole, rest), start, inverse));
    for (int64_t k = inputs; k < depth_; ++k) steps[k] = 0;
  }

  VNNI_INLINE static __m128i codes_of(__m512 v, __m512 start, __m512 inverse) {
    __m512i code = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_sub_ps(v, start), inverse));
    return _mm512_cvtusepi32_epi8(_mm512_max_epi32(code, _mm512_setzero_si512()));
  }

  template <int R, int C>
  VNNI void tile(const Place& p) const {
    __m512i total[R][C];
    UNROLL for (int r = 0; r < R; ++r) UNROLL for (int c = 0; c < C; ++c)
        total[r][c] = _mm512_setzero_si512();
    const int8_t* codes = codes_.data() + p.block * kWidth * depth_;
    for (int64_t k = 0; k < depth_; k += 4, codes += 4 * kWidth) {
      __m512i weight[C];
      UNROLL for (int c = 0; c < C; ++c) weight[c] = _mm512_load_si512(codes + 64 * c);
      UNROLL for (int r = 0; r < R; ++r) {
        int32_t four;
        std::memcpy(&four, p.steps + r * depth_ + k, sizeof four);
        __m512i steps = _mm512_set1_epi32(four);
        // The intrinsic makes GCC copy and spill the totals.
        UNROLL for (int c = 0; c < C; ++c)
            asm("vpdpbusd %2, %1, %0" : "+v"(total[r][c]) : "v"(steps), "v"(weight[c]));
      }
    }
    const int64_t first = p.block * kWidth;
    __m512 y[R][C];
    UNROLL for (int c = 0; c < C; ++c) {
      __m512 scale = _mm512_load_ps(scale_.data() + first + 16 * c);
      __m512 low = _mm512_load_ps(low_.data() + first + 16 * c);
      __m512 bias = _mm512_load_ps(bias_.data() + first + 16 * c);
      UNROLL for (int r = 0; r < R; ++r) {
        __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(total[r][c]), scale);
        __m512 shift = _mm512_fmadd_ps(low, _mm512_set1_ps(p.low[r]), bias);
        y[r][c] = _mm512_fmadd_ps(product, _mm512_set1_ps(p.step[r]), shift);
      }
    }
    const float* kept = kept_weight_.data() + first;
    for (size_t j = 0; j < kept_.size(); ++j, kept += width_) {
      __m512 weight[C];
      UNROLL for (int c = 0; c < C; ++c) weight[c] = _mm512_load_ps(kept + 16 * c);
      UNROLL for (int r = 0; r < R; ++r) {
        __m512 x = _mm512_set1_ps(p.x[r * inputs + kept_[j]]);
        UNROLL for (int c = 0; c < C; ++c)
            asm("vfmadd231ps %2, %1, %0" : "+v"(y[r][c]) : "v"(x), "v"(weight[c]));
      }
    }
    UNROLL for (int r = 0; r < R; ++r) UNROLL for (int c = 0; c < C; ++c) {
      // Where one is NaN, the second is taken.
      __m512 v = p.relu ? _mm512_max_ps(_mm512_setzero_ps(), y[r][c]) : y[r][c];
      int64_t left = outputs - first - 16 * c;
      __mmask16 lanes = left >= 16 ? 0xFFFF : __mmask16((1u << left) - 1);
      _mm512_mask_storeu_ps(p.out + r * outputs + first + 16 * c, lanes, v);
    }
  }

  int64_t depth_, blocks_, width_;
  Lines<int8_t> codes_;
  Lines<float> scale_, low_, bias_, columns_;
  std::vector<int64_t> kept_;
  Lines<float> kept_weight_;
  bool scaled_ = false;
};

#endif

}  // namespace

std::unique_ptr<Packed> make_packed(const RowwiseWeight& weight) {
#if defined(__x86_64__)
  if (level() == kAvx512 && __builtin_cpu_supports("avx512vnni"))
    return std::unique_ptr<Packed>(new Quads(weight));
#endif
  return std::unique_ptr<Packed>(new Pairs(weight));
}

}  // namespace rankc
