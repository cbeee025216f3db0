#pragma once

// What gathering and composing windows ask of their arguments, the same on every device.

#include <vector>

#include "checks.h"
#include "kernels/compose.h"
#include "kernels/gather.h"

namespace sda_fast {

// The arguments of a gather, with rows and plan as its loops read them.
struct GatherOperands {
  GatherOperands(const Tensor& x_, const Tensor& start_, const Tensor& weight_) {
    check_state("x", x_, 3);
    check_plan(start_, weight_, "x", x_);
    x = with_rows(x_, 2);
    start = as_contiguous(start_);
    weight = as_contiguous(weight_);
  }

  // Of the windows (B, N, w C, *).
  std::vector<int64_t> result_sizes() const {
    return sizes({x.size(0), weight.size(0), weight.size(1) * x.size(2)}, x, 3);
  }

  Tensor x, start, weight;
};

template <typename T>
Gather<T> gather_args(const GatherOperands& of, const Tensor& out) {
  return {static_cast<const T*>(of.x.data_ptr()),
          static_cast<const int64_t*>(of.start.data_ptr()),
          static_cast<const int8_t*>(of.weight.data_ptr()),
          static_cast<T*>(out.data_ptr()),
          of.x.size(0),
          of.x.size(1),
          of.weight.size(0),
          of.weight.size(1),
          size_from(of.x, 2),
          step_along(of.x, 0),
          step_along(of.x, 1)};
}

// The arguments of a composition into `length` states, with rows and plan as its loops read them.
struct ComposeOperands {
  ComposeOperands(const Tensor& windows_, const Tensor& start_, const Tensor& weight_,
                  int64_t length)
      : length(length) {
    check_state("windows", windows_, 3);
    check_plan(start_, weight_, "windows", windows_);
    channels = check_windows(windows_, weight_, length);
    windows = with_rows(windows_, 2);
    start = as_contiguous(start_);
    weight = as_contiguous(weight_);
  }

  // Of the trajectories (B, L, C, *).
  std::vector<int64_t> result_sizes() const {
    return sizes({windows.size(0), length, channels}, windows, 3);
  }

  Tensor windows, start, weight;
  int64_t length, channels;
};

template <typename T>
Compose<T> compose_args(const ComposeOperands& of, const Tensor& out) {
  return {static_cast<const T*>(of.windows.data_ptr()),
          static_cast<const int64_t*>(of.start.data_ptr()),
          static_cast<const int8_t*>(of.weight.data_ptr()),
          static_cast<T*>(out.data_ptr()),
          of.windows.size(0),
          of.length,
          of.weight.size(0),
          of.weight.size(1),
          of.channels * size_from(of.windows, 3),
          step_along(of.windows, 0),
          step_along(of.windows, 1)};
}

}  // namespace sda_fast
