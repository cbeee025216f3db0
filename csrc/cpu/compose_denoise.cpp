#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../terms.h"
#include "loops.h"
#include "pages.h"
#include "parallel.h"
#include "plan.h"

namespace sda_fast::cpu {

std::tuple<Tensor, Tensor> compose_denoise(const Tensor& windows, const Tensor& start,
                                           const Tensor& weight, const Tensor& x, double mu,
                                           double sigma) {
  check_state("windows", windows, 3);
  check_state("x", x, 3);
  check_plan(start, weight, "windows", windows);
  const int64_t length = x.size(1);
  check_composed(x, windows, check_windows(windows, weight, length));
  const Tensor rows = with_rows(windows, 2);
  const Tensor starts = as_contiguous(start);
  const Tensor weights = as_contiguous(weight);
  check_plan_values(starts, weights, length);

  const Tensor eps = allocate(x, x.sizes());
  const Tensor out = allocate(x, x.sizes());
  const Terms terms = denoise_terms(as_contiguous(x), eps, mu, sigma);
  if (x.numel() == 0) return {eps, out};

  dispatch(x, [&]<typename T>(T) {
    const Compose<T> composition = {static_cast<const T*>(rows.data_ptr()),
                                    static_cast<const int64_t*>(starts.data_ptr()),
                                    static_cast<const int8_t*>(weights.data_ptr()),
                                    static_cast<T*>(eps.data_ptr()),
                                    x.size(0),
                                    length,
                                    weight.size(0),
                                    weight.size(1),
                                    size_from(x, 2),
                                    step_along(rows, 0),
                                    step_along(rows, 1)};
    const Linear<T> denoise = linear_args<T>(terms, out);
    const int64_t row = composition.row;
    for_tiles(composition.batch * length, row, [&](int64_t begin, int64_t end) {
      loops_of<T>().compose(composition, begin, end);
      loops_of<T>().linear(denoise, begin * row, end * row);
    });
  });
  return {eps, out};
}

}  // namespace sda_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(sda_fast, CPU, m) {
  m.impl("compose_denoise", TORCH_BOX(&sda_fast::cpu::compose_denoise));
}
