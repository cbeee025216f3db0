#pragma once

// Shuffles of the compiler's vectors within groups of four lanes, which every instruction set has
// at the price of an instruction; between groups they cost more.

#include "config.h"

namespace sda_fast::SDA_FAST_VARIANT {

template <int... kLane>
struct LaneNumbers {};

// LaneNumbers<0, 1, ..., kCount - 1>
template <int kCount, int... kLane>
struct LaneNumbersTo : LaneNumbersTo<kCount - 1, kCount - 1, kLane...> {};
template <int... kLane>
struct LaneNumbersTo<0, kLane...> {
  using All = LaneNumbers<kLane...>;
};

template <typename V>
using LaneNumbersOf = typename LaneNumbersTo<sizeof(V) / sizeof(V{}[0])>::All;

template <int k0, int k1, int k2, int k3, typename V, int... kLane>
SDA_FAST_FN V shuffle(V a, V b, LaneNumbers<kLane...>) {
  constexpr int from[4] = {k0, k1, k2, k3};
  constexpr int count = sizeof...(kLane);
#ifdef __clang__
  return __builtin_shufflevector(
      a, b, (kLane / 4 * 4 + from[kLane % 4] % 4 + from[kLane % 4] / 4 * count)...);
#else
  using Mask = decltype(a < b);
  return __builtin_shuffle(
      a, b, Mask{(kLane / 4 * 4 + from[kLane % 4] % 4 + from[kLane % 4] / 4 * count)...});
#endif
}

// Of each group of four lanes, those numbered k0 to k3: a's are 0 to 3, b's are 4 to 7.
template <int k0, int k1, int k2, int k3, typename V>
SDA_FAST_FN V shuffle(V a, V b) {
  return shuffle<k0, k1, k2, k3>(a, b, LaneNumbersOf<V>{});
}

}  // namespace sda_fast::SDA_FAST_VARIANT
