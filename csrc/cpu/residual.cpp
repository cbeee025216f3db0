#include <torch/csrc/stable/library.h>

#include "../observe.h"
#include "loops.h"
#include "pages.h"
#include "parallel.h"

namespace sda_fast::cpu {

Tensor residual(const Tensor& y, const Tensor& prediction, const Tensor& std, const Tensor& gamma,
                double ratio) {
  const ResidualOperands of(y, prediction, std, gamma);
  const Tensor out = allocate(prediction, prediction.sizes());
  if (out.numel() == 0) return out;

  dispatch(prediction, [&]<typename T>(T) {
    const Residual<T> args = residual_args<T>(of, ratio, out);
    for_items(out.numel(), 1,
              [&](int64_t begin, int64_t end) { loops_of<T>().residual(args, begin, end); });
  });
  return out;
}

}  // namespace sda_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(sda_fast, CPU, m) {
  m.impl("residual", TORCH_BOX(&sda_fast::cpu::residual));
}
