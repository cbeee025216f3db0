#include <torch/csrc/stable/library.h>

#include "../observe.h"
#include "loops.h"
#include "pages.h"
#include "parallel.h"

namespace sda_fast::cpu {

using Numbers = std::vector<int64_t>;

Tensor subsample(const Tensor& x, const Numbers& start, const Numbers& step, const Numbers& size) {
  check_state("x", x, 0);
  const int64_t leading = leading_dims("x", x, "start", start);
  const Numbers shape(x.sizes().begin() + leading, x.sizes().end());
  const Slices slices = slices_of(x, leading, shape, start, step, size);
  const Tensor states = as_contiguous(x);
  const Tensor out = allocate(x, leading_sizes(x, leading, size));
  if (out.numel() == 0) return out;

  dispatch(x, [&]<typename T>(T) {
    const Subsample<T> args = {static_cast<const T*>(states.data_ptr()),
                               static_cast<T*>(out.data_ptr()), slices};
    const int64_t line = slices.size[slices.dims - 1];
    for_items(out.numel() / line, line,
              [&](int64_t begin, int64_t end) { loops_of<T>().subsample(args, begin, end); });
  });
  return out;
}

Tensor subsample_adjoint(const Tensor& y, const Numbers& start, const Numbers& step,
                         const Numbers& shape) {
  check_state("y", y, 0);
  const int64_t leading = leading_dims("y", y, "start", start);
  const Numbers size(y.sizes().begin() + leading, y.sizes().end());
  const Slices slices = slices_of(y, leading, shape, start, step, size);
  const Tensor observed = as_contiguous(y);
  const Tensor out = allocate(y, leading_sizes(y, leading, shape));
  if (out.numel() == 0) return out;

  dispatch(y, [&]<typename T>(T) {
    const Subsample<T> args = {static_cast<const T*>(observed.data_ptr()),
                               static_cast<T*>(out.data_ptr()), slices};
    const int64_t line = slices.shape[slices.dims - 1];
    for_items(out.numel() / line, line, [&](int64_t begin, int64_t end) {
      loops_of<T>().subsample_adjoint(args, begin, end);
    });
  });
  return out;
}

}  // namespace sda_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(sda_fast, CPU, m) {
  m.impl("subsample", TORCH_BOX(&sda_fast::cpu::subsample));
  m.impl("subsample_adjoint", TORCH_BOX(&sda_fast::cpu::subsample_adjoint));
}
