#pragma once

#include <vector>

#include "../checks.h"
#include "../kernels/compose.h"

namespace sda_fast::cpu {

// What a plan's numbers must be, where looking at them costs no wait for a device.
inline void check_plan_values(const Tensor& start, const Tensor& weight, int64_t length) {
  const int64_t count = weight.size(0), window = weight.size(1);
  const auto* s = static_cast<const int64_t*>(start.data_ptr());
  const auto* w = static_cast<const int8_t*>(weight.data_ptr());
  for (int64_t n = 0; n < count; ++n) {
    check(n == 0 || s[n] >= s[n - 1], "start must be ascending, but start[", n, "] is ", s[n],
          " after ", s[n - 1], ".");
    for (int64_t j = 0; j < window; ++j) {
      const int weight_nj = w[n * window + j];
      if (weight_nj == 0) continue;
      check(weight_nj == 1 || weight_nj == -1, "weight must be -1, 0 or +1, but weight[", n, ", ",
            j, "] is ", weight_nj, ".");
      // the sum may overflow, but no length comes near to where it then wraps around to
      const auto state = static_cast<int64_t>(static_cast<uint64_t>(s[n]) + j);
      check(state >= 0 && state < length, "start[", n, "] + ", j, ", a row of weight ", weight_nj,
            ", must lie in the trajectory's ", length, " state(s), but is ", state, ".");
    }
  }
}

// Of each state, where in a sample's windows the row lies that alone makes it up, of weight +1, or
// -1.
template <typename T>
std::vector<int64_t> only_rows(const Compose<T>& c) {
  constexpr int64_t kNone = -2, kOther = -1;
  std::vector<int64_t> only(c.length, kNone);
  for (int64_t n = 0; n < c.count; ++n) {
    for (int64_t j = 0; j < c.window; ++j) {
      const int8_t weight = c.weight[n * c.window + j];
      if (weight == 0) continue;
      int64_t& place = only[c.start[n] + j];
      place = place == kNone && weight > 0 ? n * c.window_stride + j * c.row : kOther;
    }
  }
  return only;
}

}  // namespace sda_fast::cpu
