#pragma once

// Activations and their derivatives, a number at a time. The CPU's networks use the same in vectors
// (mlp_score.h).

#include "number.h"

namespace sda_fast {

enum class Activation : int64_t { kReLU, kELU, kSELU, kSiLU, kGELU };

}  // namespace sda_fast

namespace sda_fast::SDA_FAST_VARIANT {

SDA_FAST_FN float exponential(float a) { return __builtin_expf(a); }
SDA_FAST_FN double exponential(double a) { return __builtin_exp(a); }
SDA_FAST_FN float normal_distribution(float a) { return 0.5f * __builtin_erfcf(-0.70710678f * a); }
SDA_FAST_FN double normal_distribution(double a) {
  return 0.5 * __builtin_erfc(-0.70710678118654752 * a);
}

template <typename A>
SDA_FAST_FN A activate_one(Activation f, A a) {
  constexpr A kScale = A(1.0507009873554805), kAlpha = A(1.6732632423543772);
  switch (f) {
    case Activation::kReLU:
      return a > 0 ? a : A(0);
    case Activation::kELU:
      return a > 0 ? a : exponential(a) - 1;
    case Activation::kSELU:
      return kScale * (a > 0 ? a : kAlpha * (exponential(a) - 1));
    case Activation::kGELU:
      return a * normal_distribution(a);
    default:
      return a / (1 + exponential(-a));
  }
}

template <typename A>
SDA_FAST_FN A derivative_one(Activation f, A a) {
  constexpr A kScale = A(1.0507009873554805), kAlpha = A(1.6732632423543772);
  switch (f) {
    case Activation::kReLU:
      return a > 0 ? A(1) : A(0);
    case Activation::kELU:
      return a > 0 ? A(1) : exponential(a);
    case Activation::kSELU:
      return kScale * (a > 0 ? A(1) : kAlpha * exponential(a));
    case Activation::kGELU:
      return normal_distribution(a) + a * A(0.3989422804014327) * exponential(A(-0.5) * a * a);
    default: {
      const A s = 1 / (1 + exponential(-a));
      return s * (1 + a * (1 - s));
    }
  }
}

}  // namespace sda_fast::SDA_FAST_VARIANT
