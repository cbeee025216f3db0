#include <torch/csrc/stable/library.h>

#include "linear.h"

namespace sda_fast::cuda {

Tensor guide(const Tensor& eps, const Tensor& direct, const std::optional<Tensor>& through,
             double mu, double sigma) {
  return linear("guide", guide_terms(eps, direct, through, mu, sigma));
}

void guide_(const Tensor& eps, const Tensor& direct, const std::optional<Tensor>& through,
            double mu, double sigma) {
  linear_("guide_", "eps", guide_terms(eps, direct, through, mu, sigma));
}

}  // namespace sda_fast::cuda

SDA_FAST_CUDA_IMPL(m) {
  m.impl("guide", TORCH_BOX(&sda_fast::cuda::guide));
  m.impl("guide_", TORCH_BOX(&sda_fast::cuda::guide_));
}
