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
    using Number = Accumulate<T>;
    const Residual<T> args = {static_cast<const Number*>(of.y.data_ptr()),
                              static_cast<const T*>(of.prediction.data_ptr()),
                              static_cast<const Number*>(of.std.data_ptr()),
                              static_cast<const Number*>(of.gamma.data_ptr()),
                              static_cast<T*>(out.data_ptr()),
                              of.batch,
                              of.size,
                              of.std.numel() == 1,
                              of.gamma.numel() == 1,
                              static_cast<Number>(ratio * ratio)};
    for_items(out.numel(), 1,
              [&](int64_t begin, int64_t end) { loops_of<T>().residual(args, begin, end); });
  });
  return out;
}

}  // namespace sda_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(sda_fast, CPU, m) {
  m.impl("residual", TORCH_BOX(&sda_fast::cpu::residual));
}
