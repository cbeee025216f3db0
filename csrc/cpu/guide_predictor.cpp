#include <torch/csrc/stable/library.h>

#include "../terms.h"
#include "loops.h"
#include "parallel.h"

namespace sda_fast::cpu {

void guide_predictor_(const Tensor& x, const Tensor& eps, const Tensor& direct,
                      const std::optional<Tensor>& through, double mu, double sigma, double r,
                      double b, const std::vector<Tensor>& past,
                      const std::vector<double>& past_b) {
  Terms step = guided_step_terms(x, eps, r, b, past, past_b);
  Guided guided(x, eps, direct, through, mu, sigma, true);
  guided.place(step);

  dispatch(x, [&]<typename T>(T) {
    const Linear<T> guide = linear_args<T>(guided.terms, guided.eps.work);
    const Linear<T> predictor = linear_args<T>(step, guided.x.work);
    for_tiles(guide.size, 1, [&](int64_t begin, int64_t end) {
      loops_of<T>().linear(guide, begin, end);
      loops_of<T>().linear(predictor, begin, end);
    });
  });
  guided.finish();
}

}  // namespace sda_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(sda_fast, CPU, m) {
  m.impl("guide_predictor_", TORCH_BOX(&sda_fast::cpu::guide_predictor_));
}
