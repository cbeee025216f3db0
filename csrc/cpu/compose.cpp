#include <torch/csrc/stable/library.h>

#include "loops.h"
#include "pages.h"
#include "parallel.h"
#include "plan.h"

namespace sda_fast::cpu {

Tensor compose(const Tensor& windows, const Tensor& start, const Tensor& weight, int64_t length) {
  check_state("windows", windows, 3);
  check_plan(start, weight, "windows", windows);
  const int64_t channels = check_windows(windows, weight, length);
  const Tensor rows = with_rows(windows, 2);
  const Tensor starts = as_contiguous(start);
  const Tensor weights = as_contiguous(weight);
  check_plan_values(starts, weights, length);

  const Tensor out = allocate(windows, sizes({windows.size(0), length, channels}, windows, 3));
  if (out.numel() == 0) return out;

  dispatch(windows, [&]<typename T>(T) {
    const Compose<T> args = {static_cast<const T*>(rows.data_ptr()),
                             static_cast<const int64_t*>(starts.data_ptr()),
                             static_cast<const int8_t*>(weights.data_ptr()),
                             static_cast<T*>(out.data_ptr()),
                             windows.size(0),
                             length,
                             weight.size(0),
                             weight.size(1),
                             channels * size_from(windows, 3),
                             step_along(rows, 0),
                             step_along(rows, 1)};
    for_items(args.batch * length, args.row,
              [&](int64_t begin, int64_t end) { loops_of<T>().compose(args, begin, end); });
  });
  return out;
}

}  // namespace sda_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(sda_fast, CPU, m) {
  m.impl("compose", TORCH_BOX(&sda_fast::cpu::compose));
}
