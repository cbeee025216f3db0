#include <torch/csrc/stable/library.h>

#include "../windows.h"
#include "loops.h"
#include "pages.h"
#include "parallel.h"
#include "plan.h"

namespace sda_fast::cpu {

Tensor compose(const Tensor& windows, const Tensor& start, const Tensor& weight, int64_t length) {
  const ComposeOperands of(windows, start, weight, length);
  check_plan_values(of.start, of.weight, length);
  const Tensor out = allocate(windows, of.result_sizes());
  if (out.numel() == 0) return out;

  dispatch(windows, [&]<typename T>(T) {
    const Compose<T> args = compose_args<T>(of, out);
    const std::vector<int64_t> only = only_rows(args);
    for_items(args.batch * length, args.row, [&](int64_t begin, int64_t end) {
      loops_of<T>().compose(args, only.data(), begin, end);
    });
  });
  return out;
}

}  // namespace sda_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(sda_fast, CPU, m) {
  m.impl("compose", TORCH_BOX(&sda_fast::cpu::compose));
}
