#include <torch/csrc/stable/library.h>

#include "loops.h"
#include "pages.h"
#include "parallel.h"
#include "plan.h"

namespace sda_fast::cpu {

Tensor gather(const Tensor& x, const Tensor& start, const Tensor& weight) {
  check_state("x", x, 3);
  check_plan(start, weight, "x", x);
  const Tensor states = with_rows(x, 2);
  const Tensor starts = as_contiguous(start);
  const Tensor weights = as_contiguous(weight);
  check_plan_values(starts, weights, x.size(1));

  const int64_t count = weight.size(0), window = weight.size(1);
  const Tensor out = allocate(x, sizes({x.size(0), count, window * x.size(2)}, x, 3));
  if (out.numel() == 0) return out;

  dispatch(x, [&]<typename T>(T) {
    const Gather<T> args = {static_cast<const T*>(states.data_ptr()),
                            static_cast<const int64_t*>(starts.data_ptr()),
                            static_cast<const int8_t*>(weights.data_ptr()),
                            static_cast<T*>(out.data_ptr()),
                            x.size(0),
                            x.size(1),
                            count,
                            window,
                            size_from(x, 2),
                            step_along(states, 0),
                            step_along(states, 1)};
    for_items(args.batch * count, window * args.row,
              [&](int64_t begin, int64_t end) { loops_of<T>().gather(args, begin, end); });
  });
  return out;
}

}  // namespace sda_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(sda_fast, CPU, m) { m.impl("gather", TORCH_BOX(&sda_fast::cpu::gather)); }
