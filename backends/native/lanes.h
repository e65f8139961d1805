// Vectors of floats of three instruction sets under the same names. Every function carries the
// instruction set it needs, so that one compilation holds all three.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define RANKC_INLINE(target) target inline __attribute__((always_inline))

namespace rankc {

// The number that a half is: a sign, 5 bits of exponent, 10 of fraction.
inline float from_half(uint16_t half) {
  uint32_t exponent = half >> 10 & 31, fraction = half & 1023, sign = uint32_t(half & 0x8000) << 16;
  if (exponent == 0) {
    float x = float(fraction) * 5.9604644775390625e-8f;  // steps of 2^-24
    return sign ? -x : x;
  }
  uint32_t bits = sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// Four floats, by the compiler's own vectors: SSE2, NEON, or whatever there is.
namespace portable {
#define TARGET
typedef float Floats __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(16)));
constexpr int kLanes = 4;

RANKC_INLINE(TARGET) Floats fill(float x) { return Floats{x, x, x, x}; }
RANKC_INLINE(TARGET) Floats load(const float* p) {
  Floats x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
RANKC_INLINE(TARGET) void store(float* p, Floats x) { std::memcpy(p, &x, sizeof x); }
RANKC_INLINE(TARGET) Floats load_some(const float* p, int n) {
  Floats x = fill(0.0f);
  std::memcpy(&x, p, n * sizeof(float));
  return x;
}
RANKC_INLINE(TARGET) void store_some(float* p, Floats x, int n) {
  std::memcpy(p, &x, n * sizeof(float));
}
RANKC_INLINE(TARGET) Floats multiply_add(Floats a, Floats b, Floats c) { return a * b + c; }
RANKC_INLINE(TARGET) Floats load_bytes(const uint8_t* p) {
  return Floats{float(p[0]), float(p[1]), float(p[2]), float(p[3])};
}
RANKC_INLINE(TARGET) Floats load_some_codes(const uint8_t* p, int n) {
  uint8_t codes[4] = {};
  std::memcpy(codes, p, n);
  return load_bytes(codes);
}
RANKC_INLINE(TARGET) Floats load_halves(const uint16_t* p) {
  return Floats{from_half(p[0]), from_half(p[1]), from_half(p[2]), from_half(p[3])};
}
RANKC_INLINE(TARGET) Floats load_nibbles(const uint8_t* p) {
  return Floats{float(p[0] & 15), float(p[0] >> 4), float(p[1] & 15), float(p[1] >> 4)};
}
#include "some.inc"
RANKC_INLINE(TARGET) void store_bytes(uint8_t* p, Floats x, float zero_point, int n) {
  for (int i = 0; i < n; ++i) {
    float code = __builtin_rintf(x[i]) + zero_point;
    p[i] = code > 255.0f ? 255 : code > 0.0f ? uint8_t(code) : 0;  // NaN becomes 0
  }
}
// Lane i of the result is the sum of x[i].
RANKC_INLINE(TARGET) Floats sums(const Floats* x) {
  Floats result = {};
  for (int i = 0; i < 4; ++i) result[i] = (x[i][0] + x[i][1]) + (x[i][2] + x[i][3]);
  return result;
}
#include "kernels.inc"
#undef TARGET
}  // namespace portable

#if defined(__x86_64__)
namespace avx2 {
#define TARGET __attribute__((target("avx2,fma,f16c")))
typedef __m256 Floats;
constexpr int kLanes = 8;

RANKC_INLINE(TARGET) __m256i mask(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
RANKC_INLINE(TARGET) Floats fill(float x) { return _mm256_set1_ps(x); }
RANKC_INLINE(TARGET) Floats load(const float* p) { return _mm256_loadu_ps(p); }
RANKC_INLINE(TARGET) void store(float* p, Floats x) { _mm256_storeu_ps(p, x); }
RANKC_INLINE(TARGET) Floats load_some(const float* p, int n) {
  return _mm256_maskload_ps(p, mask(n));
}
RANKC_INLINE(TARGET) void store_some(float* p, Floats x, int n) {
  _mm256_maskstore_ps(p, mask(n), x);
}
RANKC_INLINE(TARGET) Floats multiply_add(Floats a, Floats b, Floats c) {
  return _mm256_fmadd_ps(a, b, c);
}
RANKC_INLINE(TARGET) Floats load_bytes(const uint8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)));
}
RANKC_INLINE(TARGET) Floats load_some_codes(const uint8_t* p, int n) {
  uint8_t codes[8] = {};
  std::memcpy(codes, p, n);
  return load_bytes(codes);
}
RANKC_INLINE(TARGET) Floats load_halves(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
}
RANKC_INLINE(TARGET) Floats load_nibbles(const uint8_t* p) {
  int32_t pairs;
  std::memcpy(&pairs, p, sizeof pairs);
  __m128i bytes = _mm_cvtsi32_si128(pairs), low = _mm_set1_epi8(15);
  __m128i codes = _mm_unpacklo_epi8(_mm_and_si128(bytes, low),
                                    _mm_and_si128(_mm_srli_epi16(bytes, 4), low));
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(codes));
}
#include "some.inc"
RANKC_INLINE(TARGET) void store_bytes(uint8_t* p, Floats x, float zero_point, int n) {
  x = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  x = _mm256_add_ps(x, _mm256_set1_ps(zero_point));
  // A NaN is the first operand, so that the second, 0, is taken.
  x = _mm256_min_ps(_mm256_max_ps(x, _mm256_setzero_ps()), _mm256_set1_ps(255.0f));
  __m256i wide = _mm256_cvtps_epi32(x);
  __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  uint64_t codes = _mm_cvtsi128_si64(_mm_packus_epi16(words, words));
  std::memcpy(p, &codes, n);
}
RANKC_INLINE(TARGET) Floats sums(const Floats* x) {
  __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
  __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(x[4], x[5]), _mm256_hadd_ps(x[6], x[7]));
  return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}
#include "kernels.inc"
#undef TARGET
}  // namespace avx2

namespace avx512 {
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
typedef __m512 Floats;
constexpr int kLanes = 16;

RANKC_INLINE(TARGET) __mmask16 mask(int n) { return __mmask16((1u << n) - 1); }
RANKC_INLINE(TARGET) Floats fill(float x) { return _mm512_set1_ps(x); }
RANKC_INLINE(TARGET) Floats load(const float* p) { return _mm512_loadu_ps(p); }
RANKC_INLINE(TARGET) void store(float* p, Floats x) { _mm512_storeu_ps(p, x); }
RANKC_INLINE(TARGET) Floats load_some(const float* p, int n) {
  return _mm512_maskz_loadu_ps(mask(n), p);
}
RANKC_INLINE(TARGET) void store_some(float* p, Floats x, int n) {
  _mm512_mask_storeu_ps(p, mask(n), x);
}
RANKC_INLINE(TARGET) Floats multiply_add(Floats a, Floats b, Floats c) {
  return _mm512_fmadd_ps(a, b, c);
}
RANKC_INLINE(TARGET) Floats widened(__m128i bytes) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
}
RANKC_INLINE(TARGET) Floats widened_nibbles(__m128i bytes) {
  __m128i low = _mm_set1_epi8(15);
  return widened(_mm_unpacklo_epi8(_mm_and_si128(bytes, low),
                                   _mm_and_si128(_mm_srli_epi16(bytes, 4), low)));
}
RANKC_INLINE(TARGET) Floats load_bytes(const uint8_t* p) {
  return widened(_mm_loadu_si128((const __m128i*)p));
}
RANKC_INLINE(TARGET) Floats load_some_bytes(const uint8_t* p, int n) {
  return widened(_mm_maskz_loadu_epi8(mask(n), p));
}
RANKC_INLINE(TARGET) Floats load_halves(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
RANKC_INLINE(TARGET) Floats load_some_halves(const uint16_t* p, int n) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask(n), p));
}
RANKC_INLINE(TARGET) Floats load_nibbles(const uint8_t* p) {
  return widened_nibbles(_mm_loadl_epi64((const __m128i*)p));
}
RANKC_INLINE(TARGET) Floats load_some_nibbles(const uint8_t* p, int n) {
  return widened_nibbles(_mm_maskz_loadu_epi8(mask((n + 1) / 2), p));
}
RANKC_INLINE(TARGET) void store_bytes(uint8_t* p, Floats x, float zero_point, int n) {
  x = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  x = _mm512_add_ps(x, _mm512_set1_ps(zero_point));
  x = _mm512_min_ps(_mm512_max_ps(x, _mm512_setzero_ps()), _mm512_set1_ps(255.0f));
  _mm_mask_storeu_epi8(p, mask(n), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)));
}
// Adds the halves of pairs of vectors, four times, until each of the 16 has one lane.
RANKC_INLINE(TARGET) Floats sums(const Floats* x) {
  Floats a[8], b[4], c[2];
  for (int i = 0; i < 8; ++i)
    a[i] = _mm512_add_ps(_mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]),
                         _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]));
  for (int i = 0; i < 4; ++i) {
    __m512d left = _mm512_castps_pd(a[2 * i]), right = _mm512_castps_pd(a[2 * i + 1]);
    b[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(left, right)),
                         _mm512_castpd_ps(_mm512_unpackhi_pd(left, right)));
  }
  for (int i = 0; i < 2; ++i)
    c[i] = _mm512_add_ps(_mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0x88),
                         _mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0xdd));
  return _mm512_add_ps(_mm512_shuffle_f32x4(c[0], c[1], 0x88),
                       _mm512_shuffle_f32x4(c[0], c[1], 0xdd));
}
#include "kernels.inc"
#undef TARGET
}  // namespace avx512
#endif

}  // namespace rankc
