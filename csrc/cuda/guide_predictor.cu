#include "../kernels/guide_predictor.h"

#include <torch/csrc/stable/library.h>

#include "linear.h"

namespace sda_fast::cuda {

void guide_predictor_(const Tensor& x, const Tensor& eps, const Tensor& direct,
                      const std::optional<Tensor>& through, double mu, double sigma, double r,
                      double b, const std::vector<Tensor>& past,
                      const std::vector<double>& past_b) {
  Terms step = guided_step_terms(x, eps, r, b, past, past_b);
  const Launch launch(x);
  Guided guided(x, eps, direct, through, mu, sigma, true);
  guided.place(step);
  if (x.numel() == 0) return;

  dispatch(x, [&]<typename T>(T) {
    const Linear<T> guide = linear_args<T>(guided.terms, guided.eps.work);
    const Linear<T> predictor = linear_args<T>(step, guided.x.work);
    const bool aligned = is_aligned(guide) && is_aligned(predictor);
    with_count<2, 3>(guide.count, [&](auto terms) {
      with_count<2, 4>(predictor.count, [&](auto steps) {
        const auto kernel = aligned ? guide_predictor_kernel<T, terms(), steps(), true>
                                    : guide_predictor_kernel<T, terms(), steps(), false>;
        // Floor: (terms + steps + 1) sizeof(T) bytes an element: eps, direct, through, x and past
        // in, eps and x out.
        launch("guide_predictor_", kernel, blocks_for(guide.size, 4 * kThreads), kThreads, 0, guide,
               predictor);
      });
    });
  });
  guided.finish();
}

}  // namespace sda_fast::cuda

SDA_FAST_CUDA_IMPL(m) { m.impl("guide_predictor_", TORCH_BOX(&sda_fast::cuda::guide_predictor_)); }
