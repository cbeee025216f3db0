#pragma once

// Vectors of floats as wide as the instruction set's registers, by the compiler's vector types:
// arithmetic on them is elementwise, and the optimiser sees through it.

#include "config.h"
#if defined(__AVX512BF16__)
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

SDA_FAST_FN Vector reciprocal(Vector a) { return 1.0f / a; }

SDA_FAST_FN Vector inverse_square_root(Vector a) {
  Vector result;
  for (int i = 0; i < kLanes; ++i) result[i] = 1.0f / __builtin_sqrtf(a[i]);
  return result;
}

// e^a, to a relative error of 1e-7: 2^n e^f with |f| <= ln(2) / 2, e^f by its Taylor polynomial of
// degree 7, whose remainder is 5e-9. Saturates where the result would leave the normal numbers.
SDA_FAST_FN Vector exponential(Vector a) {
  const Vector low = splat(-87.0f), high = splat(88.0f);
  a = a < low ? low : a;
  a = a > high ? high : a;
  const Vector round = splat(12582912.0f);  // 1.5 2^23: what is added to it is rounded to integers
  const Vector n = (a * 1.44269504f + round) - round;
  const Vector f = (a - n * 0.693359375f) + n * 2.12194440e-4f;  // ln(2) in two parts
  Vector p = f * (1.0f / 5040) + 1.0f / 720;
  p = p * f + 1.0f / 120;
  p = p * f + 1.0f / 24;
  p = p * f + 1.0f / 6;
  p = p * f + 0.5f;
  p = p * f + 1.0f;
  p = p * f + 1.0f;
  const Ints scale = (__builtin_convertvector(n, Ints) + 127) << 23;
  return p * reinterpret_cast<const Vector&>(scale);
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
