#include <torch/csrc/stable/library.h>

#include "../windows.h"
#include "loops.h"
#include "pages.h"
#include "parallel.h"
#include "plan.h"

namespace sda_fast::cpu {

Tensor gather(const Tensor& x, const Tensor& start, const Tensor& weight) {
  const GatherOperands of(x, start, weight);
  check_plan_values(of.start, of.weight, x.size(1));
  const Tensor out = allocate(x, of.result_sizes());
  if (out.numel() == 0) return out;

  dispatch(x, [&]<typename T>(T) {
    const Gather<T> args = gather_args<T>(of, out);
    for_items(args.batch * args.count, args.window * args.row,
              [&](int64_t begin, int64_t end) { loops_of<T>().gather(args, begin, end); });
  });
  return out;
}

}  // namespace sda_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(sda_fast, CPU, m) { m.impl("gather", TORCH_BOX(&sda_fast::cpu::gather)); }
