#pragma once

// Vectors of floats as wide as the instruction set's registers, by the compiler's vector types:
// arithmetic on them is elementwise, and the optimiser sees through it.

#include "config.h"
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace sda_fast::SDA_FAST_VARIANT {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int kLanes = kVectorBytes / 4;

typedef float Vector __attribute__((vector_size(kVectorBytes), aligned(kVectorBytes), may_alias));
typedef int32_t Ints __attribute__((vector_size(kVectorBytes), aligned(kVectorBytes), may_alias));

SDA_FAST_FN Vector splat(float a) { return a - Vector{}; }
SDA_FAST_FN Vector& at(float* p) { return *reinterpret_cast<Vector*>(p); }
SDA_FAST_FN const Vector& at(const float* p) { return *reinterpret_cast<const Vector*>(p); }

SDA_FAST_FN Vector inverse_square_root(Vector a) {
  Vector result;
  for (int i = 0; i < kLanes; ++i) result[i] = 1.0f / __builtin_sqrtf(a[i]);
  return result;
}

// Of finite a below 2^126, to a unit in the last place; a between bounds, or NaN; the integer
// nearest to it; and p 2^n. With AVX-512 these take fewer instructions than what vector types make
// of them.
#if defined(__AVX512F__)
constexpr __mmask16 kAll = 0xFFFF;  // (without a mask GCC 12 warns of its own headers)
SDA_FAST_FN Vector reciprocal(Vector a) {
  const auto rough = (Vector)_mm512_maskz_rcp14_ps(kAll, (__m512)a);
  return rough + rough * (1.0f - a * rough);  // a step of Newton's method
}
SDA_FAST_FN Vector bounded(Vector a, float low, float high) {
  const __m512 raised = _mm512_maskz_max_ps(kAll, (__m512)splat(low), (__m512)a);
  return (Vector)_mm512_maskz_min_ps(kAll, (__m512)splat(high), raised);
}
SDA_FAST_FN Vector nearest(Vector a) {
  return (Vector)_mm512_maskz_roundscale_ps(kAll, (__m512)a, 0);
}
SDA_FAST_FN Vector times_power(Vector p, Vector n) {
  return (Vector)_mm512_maskz_scalef_ps(kAll, (__m512)p, (__m512)n);
}
#else
SDA_FAST_FN Vector reciprocal(Vector a) { return 1.0f / a; }
SDA_FAST_FN Vector bounded(Vector a, float low, float high) {
  a = a < splat(low) ? splat(low) : a;
  return a > splat(high) ? splat(high) : a;
}
SDA_FAST_FN Vector nearest(Vector a) {
  const Vector round = splat(12582912.0f);  // 1.5 2^23: what is added to it is rounded to integers
  return (a + round) - round;
}
SDA_FAST_FN Vector times_power(Vector p, Vector n) {
  const Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
  return p * reinterpret_cast<const Vector&>(power);
}
#endif

// e^a, to a relative error of 1e-7: 2^n e^f with |f| <= ln(2) / 2, e^f by its Taylor polynomial of
// degree 7, whose remainder is 5e-9. Saturates where the result would leave the normal numbers.
SDA_FAST_FN Vector exponential(Vector a) {
  a = bounded(a, -87.0f, 88.0f);
  const Vector n = nearest(a * 1.44269504f);
  const Vector f = (a - n * 0.693359375f) + n * 2.12194440e-4f;  // ln(2) in two parts
  Vector p = f * (1.0f / 5040) + 1.0f / 720;
  p = p * f + 1.0f / 120;
  p = p * f + 1.0f / 24;
  p = p * f + 1.0f / 6;
  p = p * f + 0.5f;
  p = p * f + 1.0f;
  p = p * f + 1.0f;
  return times_power(p, n);
}

// The standard normal distribution function, to 2e-7: erfc(|a| / sqrt 2) = e^(-a^2 / 2) p(u) with
// u = 1 / (1 + 0.38 |a| / sqrt 2) and p fitted by Chebyshev interpolation, to 1e-8.
SDA_FAST_FN Vector normal_distribution(Vector a) {
  const Vector size = a < splat(0.0f) ? -a : a;
  const Vector u = 1.0f / (1.0f + 0.38f * 0.70710678f * size);
  Vector p = u * 0.055285845f - 0.24473301f;
  p = p * u + 0.3285833f;
  p = p * u - 0.122602865f;
  p = p * u + 0.20454539f;
  p = p * u + 0.14875476f;
  p = p * u + 0.20156345f;
  p = p * u + 0.2142059f;
  p = p * u + 0.21439712f;
  p = p * u - 2.296774e-08f;
  const Vector tail = 0.5f * p * exponential(-0.5f * a * a);
  return a < splat(0.0f) ? tail : 1.0f - tail;
}

}  // namespace sda_fast::SDA_FAST_VARIANT
