#pragma once

// Activations and their derivatives: of a number, or on the CPU of a vector of them (vector.h).

#include "number.h"
#ifndef SDA_FAST_GPU
#include "vector.h"
#endif

namespace sda_fast {

enum class Activation : int64_t { kReLU, kELU, kSELU, kSiLU, kGELU };

}  // namespace sda_fast

namespace sda_fast::SDA_FAST_VARIANT {

SDA_FAST_FN float exponential(float a) { return __builtin_expf(a); }
SDA_FAST_FN double exponential(double a) { return __builtin_exp(a); }

// 1 / a, on a GPU of float to a unit in the last place, what is subnormal taken for 0. (Division
// takes several times as many instructions, and __fdividef, which scales small numbers, twice.)
SDA_FAST_FN float reciprocal(float a) {
#ifdef __CUDA_ARCH__
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(a));
  return result;
#else
  return 1.0f / a;
#endif
}
SDA_FAST_FN double reciprocal(double a) { return 1.0 / a; }

// 1 / sqrt(a), on a GPU of float to two units in the last place, without branches.
SDA_FAST_FN float inverse_square_root(float a) {
#ifdef __CUDA_ARCH__
  return rsqrtf(a);
#else
  return 1.0f / square_root(a);
#endif
}

// The standard normal distribution function, in float to an absolute error of 1e-7.
SDA_FAST_FN float normal_distribution(float a) {
  return multiply_add(0.5f, __builtin_erff(0.70710678f * a), 0.5f);
}
SDA_FAST_FN double normal_distribution(double a) {
  return 0.5 * __builtin_erfc(-0.70710678118654752 * a);
}

template <typename V>
struct Activated {
  V value, derivative;
};

// f(a) and f'(a), S the type of a number; which of them is not used, the optimiser leaves out.
template <typename S, typename V>
SDA_FAST_FN Activated<V> activate(Activation f, V a) {
  const V zero = {}, one = zero + S(1);
  switch (f) {
    case Activation::kReLU:
      return {a < zero ? zero : a, a > zero ? one : zero};  // NaN stays
    case Activation::kELU: {
      const V e = exponential(a);
      return {a > zero ? a : e - S(1), a > zero ? one : e};
    }
    case Activation::kSELU: {
      constexpr S kScale = S(1.0507009873554805), kAlpha = S(1.6732632423543772);
      const V e = kAlpha * exponential(a);
      return {kScale * (a > zero ? a : e - kAlpha), kScale * (a > zero ? one : e)};
    }
    case Activation::kGELU: {
      const V below = normal_distribution(a);
      const V density = S(0.3989422804014327) * exponential(S(-0.5) * a * a);
      return {a * below, below + a * density};
    }
    default: {
      const V s = reciprocal(S(1) + exponential(-a));
      return {a * s, s * (S(1) + a * (S(1) - s))};
    }
  }
}

template <Activation kActivation>
struct Chosen {
  static constexpr Activation kValue = kActivation;
};

// Calls f with an activation as a constant, so that there is no choice among them in its loops.
template <typename F>
SDA_FAST_FN void with_activation(Activation activation, const F& f) {
  switch (activation) {
    case Activation::kReLU:
      return f(Chosen<Activation::kReLU>{});
    case Activation::kELU:
      return f(Chosen<Activation::kELU>{});
    case Activation::kSELU:
      return f(Chosen<Activation::kSELU>{});
    case Activation::kGELU:
      return f(Chosen<Activation::kGELU>{});
    default:
      return f(Chosen<Activation::kSiLU>{});
  }
}

}  // namespace sda_fast::SDA_FAST_VARIANT
