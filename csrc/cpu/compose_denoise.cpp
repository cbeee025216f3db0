#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../terms.h"
#include "../windows.h"
#include "loops.h"
#include "pages.h"
#include "parallel.h"
#include "plan.h"

namespace sda_fast::cpu {

std::tuple<Tensor, Tensor> compose_denoise(const Tensor& windows, const Tensor& start,
                                           const Tensor& weight, const Tensor& x, double mu,
                                           double sigma) {
  check_state("x", x, 3);
  const ComposeOperands of(windows, start, weight, x.size(1));
  check_composed(x, windows, of.channels);
  check_plan_values(of.start, of.weight, of.length);

  const Tensor eps = allocate(x, x.sizes());
  const Tensor out = allocate(x, x.sizes());
  const Terms terms = denoise_terms(as_contiguous(x), eps, mu, sigma);
  if (x.numel() == 0) return {eps, out};

  dispatch(x, [&]<typename T>(T) {
    const Compose<T> composition = compose_args<T>(of, eps);
    const Linear<T> denoise = linear_args<T>(terms, out);
    const std::vector<int64_t> only = only_rows(composition);
    const int64_t row = composition.row;
    for_tiles(composition.batch * of.length, row, [&](int64_t begin, int64_t end) {
      loops_of<T>().compose(composition, only.data(), begin, end);
      loops_of<T>().linear(denoise, begin * row, end * row);
    });
  });
  return {eps, out};
}

}  // namespace sda_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(sda_fast, CPU, m) {
  m.impl("compose_denoise", TORCH_BOX(&sda_fast::cpu::compose_denoise));
}
