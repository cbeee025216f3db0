#pragma once

// Standard normal numbers from random words, by Box-Muller: of two words a and b,
//
//   u = (a + 1/2) / 2^32,  v = b / 2^32,  radius = sqrt(-2 ln u),
//   (radius cos(2 pi v), radius sin(2 pi v)).
//
// Logarithm, sine and cosine are our own: without branches, so that loops over them vectorise, and
// the same on every device. Their coefficients are minimax, fitted by Remez' exchange in 50 digits
// (to the relative error of the function they stand for) and rounded to the type.

#include "config.h"

namespace sda_fast::SDA_FAST_VARIANT {

template <typename T>
struct Numbers;

template <>
struct Numbers<float> {
  using Int = int32_t;
  static constexpr int kMantissaBits = 23;
  static constexpr Int kOne = 0x3F800000, kSqrtHalf = 0x3F3504F3;  // the bits of 1 and sqrt(1/2)

  static SDA_FAST_FN Int bits(float a) {
#ifdef __CUDA_ARCH__
    return __float_as_int(a);
#else
    return __builtin_bit_cast(Int, a);
#endif
  }
  static SDA_FAST_FN float from_bits(Int a) {
#ifdef __CUDA_ARCH__
    return __int_as_float(a);
#else
    return __builtin_bit_cast(float, a);
#endif
  }
  // -a if the highest bit of a word is set
  static SDA_FAST_FN float flip(float a, uint32_t word) {
    return from_bits(bits(a) ^ static_cast<Int>(word & 0x80000000u));
  }
  // The exponent of 1 with `a` added to its bits.
  static SDA_FAST_FN float exponent(Int a) { return static_cast<float>(a >> 23); }

  // (log((1 + s) / (1 - s)) - 2 s) / s^3 as a polynomial of s^2, |s| < 0.1716: relative error 8e-10
  static SDA_FAST_FN float log_tail(float z) {
    return multiply_add(multiply_add(2.98718e-01f, z, 3.997754e-01f), z, 6.6666776e-01f);
  }
  // sin(pi t / 4) / t as a polynomial of t^2, |t| <= 1: 3e-9
  static SDA_FAST_FN float sin_tail(float z) {
    float p = multiply_add(-3.5950452e-05f, z, 2.490001e-03f);
    p = multiply_add(p, z, -8.0745436e-02f);
    return multiply_add(p, z, 7.853982e-01f);
  }
  // (cos(pi t / 4) - 1) / t^2 as a polynomial of t^2, |t| <= 1: 5e-11
  static SDA_FAST_FN float cos_tail(float z) {
    float p = multiply_add(3.5313346e-06f, z, -3.25942e-04f);
    p = multiply_add(p, z, 1.5854327e-02f);
    return multiply_add(p, z, -3.0842513e-01f);
  }
};

template <>
struct Numbers<double> {
  using Int = int64_t;
  static constexpr int kMantissaBits = 52;
  static constexpr Int kOne = 0x3FF0000000000000, kSqrtHalf = 0x3FE6A09E667F3BCD;

  static SDA_FAST_FN Int bits(double a) {
#ifdef __CUDA_ARCH__
    return __double_as_longlong(a);
#else
    return __builtin_bit_cast(Int, a);
#endif
  }
  static SDA_FAST_FN double from_bits(Int a) {
#ifdef __CUDA_ARCH__
    return __longlong_as_double(a);
#else
    return __builtin_bit_cast(double, a);
#endif
  }
  static SDA_FAST_FN double flip(double a, uint32_t word) {
    return from_bits(bits(a) ^ static_cast<Int>(uint64_t{word & 0x80000000u} << 32));
  }
  // The exponent put in the mantissa of 2^52: AVX2 has no conversion from int64 to double.
  static SDA_FAST_FN double exponent(Int a) {
    return from_bits(((a + kOne) >> 52) | 0x4330000000000000) - (4503599627370496.0 + 1023.0);
  }

  // as above, relative errors 1e-18, 3e-18 and 5e-17
  static SDA_FAST_FN double log_tail(double z) {
    double p = multiply_add(0.14796034058019095, z, 0.15314042583979753);
    p = multiply_add(p, z, 0.18183564618634324);
    p = multiply_add(p, z, 0.22222198567939894);
    p = multiply_add(p, z, 0.2857142874243475);
    p = multiply_add(p, z, 0.3999999999941449);
    return multiply_add(p, z, 0.6666666666666734);
  }
  static SDA_FAST_FN double sin_tail(double z) {
    double p = multiply_add(6.877100844366546e-12, z, -1.7571492941704679e-09);
    p = multiply_add(p, z, 3.133616216633994e-07);
    p = multiply_add(p, z, -3.6576204158456407e-05);
    p = multiply_add(p, z, 0.0024903945701887364);
    p = multiply_add(p, z, -0.08074551218828054);
    return multiply_add(p, z, 0.7853981633974483);
  }
  static SDA_FAST_FN double cos_tail(double z) {
    double p = multiply_add(1.1367196885960059e-10, z, -2.4609562910352445e-08);
    p = multiply_add(p, z, 3.5908592490621846e-06);
    p = multiply_add(p, z, -0.000325991886524593);
    p = multiply_add(p, z, 0.01585434424375331);
    return multiply_add(p, z, -0.3084251375340393);
  }
};

// -2 ln(1 + f) = f^2 - 2 f - s (2 s^2 R(s^2) + f^2), s = f / (2 + f)
template <typename T>
SDA_FAST_FN T minus_two_log1p(T f) {
  const T s = f / (T(2) + f);
  const T z = s * s, square = f * f;
  return multiply_add(
      T(-2), f, multiply_add(-s, multiply_add(T(2) * z, Numbers<T>::log_tail(z), square), square));
}

// sqrt(-2 ln((word + 1/2) / 2^32)), to full relative accuracy at both ends: of u and 1 - u the
// lesser, p, is exact to rounding, and it is ln(1 - p) itself that is computed near u = 1.
template <typename T>
SDA_FAST_FN T radius(uint32_t word) {
  using N = Numbers<T>;
  const int32_t top = static_cast<int32_t>(word) >> 31;     // all ones if u > 1/2
  const int32_t lesser = static_cast<int32_t>(word) ^ top;  // >= 0: signed conversion is exact
  const T p = multiply_add(static_cast<T>(lesser), T(0x1p-32), T(0x1p-33));  // min(u, 1 - u)
  const T u = top < 0 ? T(1) - p : p;

  // u = 2^k (1 + f), sqrt(1/2) <= 1 + f < sqrt(2); k = 0 near u = 1 only
  const typename N::Int above = N::bits(u) - N::kSqrtHalf;
  constexpr typename N::Int kMantissa = (typename N::Int{1} << N::kMantissaBits) - 1;
  const T k = N::exponent(above);
  const T f = k == T(0) ? -p : N::from_bits((above & kMantissa) + N::kSqrtHalf) - T(1);
  return square_root(multiply_add(k, T(-2 * 0.69314718055994530942), minus_two_log1p(f)));
}

// cos(2 pi word / 2^32) and sin, the angle reduced exactly, in integers: to the nearest multiple j
// of a quarter turn and a remainder t in eighths of a turn, -1 <= t < 1.
template <typename T>
SDA_FAST_FN void turn(uint32_t word, T& cosine, T& sine) {
  using N = Numbers<T>;
  const uint32_t j = word + 0x20000000u;  // in its two highest bits
  const T t = static_cast<T>(static_cast<int32_t>((j << 2) ^ 0x80000000u)) * T(0x1p-31);
  const T z = t * t;
  const T s = t * N::sin_tail(z);
  const T c = multiply_add(z, N::cos_tail(z), T(1));
  const bool odd = j & 0x40000000u;
  cosine = N::flip(odd ? s : c, j + 0x40000000u);
  sine = N::flip(odd ? c : s, j);
}

template <typename T>
SDA_FAST_FN void normal_pair(uint32_t a, uint32_t b, T& first, T& second) {
  T cosine, sine;
  turn(b, cosine, sine);
  const T r = radius<T>(a);
  first = r * cosine;
  second = r * sine;
}

}  // namespace sda_fast::SDA_FAST_VARIANT
