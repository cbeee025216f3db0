#pragma once

// The types that a state is kept in. The half types only store: arithmetic is done in
// Accumulate<T>, to which every number is widened as it is loaded, and from which a result is
// narrowed, rounded once, as it is stored.

#include "config.h"
#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#elif defined(__F16C__) && !defined(SDA_FAST_GPU)
#include <immintrin.h>
#define SDA_FAST_F16C
#endif

namespace sda_fast {

struct BFloat16 {
  uint16_t bits;  // the upper half of a float's
};

struct Float16 {
  uint16_t bits;  // a sign, 5 of exponent and 10 of fraction, as in IEEE 754
};

template <typename T>
struct Arithmetic;
template <>
struct Arithmetic<float> {
  using Type = float;
};
template <>
struct Arithmetic<double> {
  using Type = double;
};
template <>
struct Arithmetic<BFloat16> : Arithmetic<float> {};
template <>
struct Arithmetic<Float16> : Arithmetic<float> {};

// float for float and the half types, double for double.
template <typename T>
using Accumulate = typename Arithmetic<T>::Type;

}  // namespace sda_fast

namespace sda_fast::SDA_FAST_VARIANT {

SDA_FAST_FN uint32_t bits_of(float a) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(a);
#else
  return __builtin_bit_cast(uint32_t, a);
#endif
}
SDA_FAST_FN float float_of(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  return __builtin_bit_cast(float, bits);
#endif
}

SDA_FAST_FN float widen(float a) { return a; }
SDA_FAST_FN double widen(double a) { return a; }

SDA_FAST_FN float widen(BFloat16 a) { return float_of(static_cast<uint32_t>(a.bits) << 16); }

// Without hardware for it, in integers and without branches, so that loops vectorise; it is right
// also where subnormal floats are flushed to zero.
SDA_FAST_FN float widen(Float16 a) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(a.bits));
#elif defined(SDA_FAST_F16C)
  return _cvtsh_ss(a.bits);
#else
  constexpr uint32_t kExponent = 0x7C00, kRebias = (127 - 15) << 23;
  const uint32_t size = a.bits & 0x7FFFu, sign = (a.bits & 0x8000u) << 16;
  const uint32_t rebias = size >= kExponent ? 2 * kRebias : kRebias;  // infinities and NaN
  const uint32_t normal = (size << 13) + rebias;
  const uint32_t subnormal = bits_of(static_cast<float>(static_cast<int32_t>(size)) * 0x1p-24f);
  return float_of((size < 0x0400u ? subnormal : normal) | sign);
#endif
}

// To nearest, ties to even; what is too large becomes infinite, and NaN stays NaN.

SDA_FAST_FN void narrow(float a, float& to) { to = a; }
SDA_FAST_FN void narrow(double a, double& to) { to = a; }

SDA_FAST_FN void narrow(float a, BFloat16& to) {
#ifdef __CUDA_ARCH__
  to.bits = __bfloat16_as_ushort(__float2bfloat16_rn(a));
#else
  const uint32_t bits = bits_of(a);
  const uint32_t rounded = bits + (0x7FFFu + (bits >> 16 & 1));
  to.bits = static_cast<uint16_t>((a != a ? bits | 0x00400000u : rounded) >> 16);
#endif
}

SDA_FAST_FN void narrow(float a, Float16& to) {
#ifdef __CUDA_ARCH__
  to.bits = __half_as_ushort(__float2half_rn(a));
#elif defined(SDA_FAST_F16C)
  to.bits = _cvtss_sh(a, _MM_FROUND_TO_NEAREST_INT);
#else
  constexpr uint32_t kRebias = (127 - 15) << 23;
  const uint32_t size = bits_of(a) & 0x7FFFFFFFu, sign = bits_of(a) >> 16 & 0x8000u;
  const uint32_t normal = (size - kRebias + (0x0FFFu + (size >> 13 & 1))) >> 13;
  // the last place of 1/2 is that of the subnormal numbers: the sum is rounded as they are
  const uint32_t subnormal = bits_of(float_of(size) + 0.5f) - bits_of(0.5f);
  uint32_t result = size < 0x38800000u ? subnormal : normal;  // 2^-14
  result = size >= 0x477FF000u ? 0x7C00u : result;            // 65520, halfway to 2^16
  result = size > 0x7F800000u ? 0x7E00u : result;
  to.bits = static_cast<uint16_t>(result | sign);
#endif
}

template <typename T>
SDA_FAST_FN T narrow(Accumulate<T> a) {
  T to;
  narrow(a, to);
  return to;
}

SDA_FAST_FN BFloat16 operator-(BFloat16 a) { return {static_cast<uint16_t>(a.bits ^ 0x8000u)}; }
SDA_FAST_FN Float16 operator-(Float16 a) { return {static_cast<uint16_t>(a.bits ^ 0x8000u)}; }

#ifndef SDA_FAST_GPU

// Arrays, for loops on the CPU: a run of at most kRun numbers is widened, worked on and narrowed as
// a whole, which vectorises. Float and double are worked on where they lie.

constexpr int64_t kRun = 512;

template <typename T>
SDA_FAST_FN void widen(const T* from, float* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = widen(from[i]);
}
template <typename T>
SDA_FAST_FN void narrow(const Accumulate<T>* from, T* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = narrow<T>(from[i]);
}

#ifdef SDA_FAST_F16C  // of which the compiler makes no vectors

SDA_FAST_FN void widen(const Float16* from, float* to, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(a));
  }
  for (; i < n; ++i) to[i] = widen(from[i]);
}
SDA_FAST_FN void narrow(const float* from, Float16* to, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i a = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), a);
  }
  for (; i < n; ++i) to[i] = narrow<Float16>(from[i]);
}

#endif

// Calls f(first, size) for each run of n numbers: all of them, if nothing is copied.
template <typename T, typename F>
SDA_FAST_FN void for_runs(int64_t n, const F& f) {
  if constexpr (sizeof(T) == sizeof(Accumulate<T>)) {
    f(int64_t{0}, n);
  } else {
    for (int64_t first = 0; first < n; first += kRun) {
      f(first, n - first < kRun ? n - first : kRun);
    }
  }
}

// A run to read.
template <typename T>
struct Widened {
  SDA_FAST_FN Widened(const T* run, int64_t n) { widen(run, numbers, n); }
  SDA_FAST_FN float operator[](int64_t i) const { return numbers[i]; }

  float numbers[kRun];
};

// A run to write: what was put in it is in its place after `store`.
template <typename T>
struct Narrowed {
  SDA_FAST_FN explicit Narrowed(T* run) : run(run) {}
  SDA_FAST_FN float& operator[](int64_t i) { return numbers[i]; }
  SDA_FAST_FN void store(int64_t n) const { narrow(numbers, run, n); }

  T* run;
  float numbers[kRun];
};

// Both, where the numbers lie.
template <typename T>
struct InPlaceRun {
  SDA_FAST_FN explicit InPlaceRun(T* run, int64_t = 0) : run(run) {}
  SDA_FAST_FN T& operator[](int64_t i) const { return run[i]; }
  SDA_FAST_FN void store(int64_t) const {}

  T* run;
};
template <>
struct Widened<float> : InPlaceRun<const float> {
  using InPlaceRun::InPlaceRun;
};
template <>
struct Widened<double> : InPlaceRun<const double> {
  using InPlaceRun::InPlaceRun;
};
template <>
struct Narrowed<float> : InPlaceRun<float> {
  using InPlaceRun::InPlaceRun;
};
template <>
struct Narrowed<double> : InPlaceRun<double> {
  using InPlaceRun::InPlaceRun;
};

#endif

}  // namespace sda_fast::SDA_FAST_VARIANT
