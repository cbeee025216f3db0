#pragma once

#include "../terms.h"
#include "launch.h"

namespace sda_fast::cuda {

// The linear combination of an operator: a new tensor, or in place of the first, the argument
// `first`.
Tensor linear(const char* name, const Terms& terms);
void linear_(const char* name, const char* first, const Terms& terms);

template <typename T>
bool is_aligned(const Linear<T>& l) {
  bool aligned = is_aligned(l.out);
  for (int j = 0; j < l.count; ++j) aligned = aligned && is_aligned(l.terms[j]);
  return aligned;
}

// Calls f with the number as a constant, of those from kLeast to kMost.
template <int kLeast, int kMost, typename F>
void with_count(int count, const F& f) {
  if constexpr (kLeast < kMost) {
    if (count > kLeast) return with_count<kLeast + 1, kMost>(count, f);
  }
  f(std::integral_constant<int, kLeast>{});
}

}  // namespace sda_fast::cuda
