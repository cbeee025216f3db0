#include <torch/csrc/stable/library.h>

#include "linear.h"

namespace sda_fast::cuda {

Tensor multistep(const Tensor& x, const std::vector<Tensor>& eps, double r,
                 const std::vector<double>& b) {
  return linear("multistep", multistep_terms(x, eps, r, b));
}

void multistep_(const Tensor& x, const std::vector<Tensor>& eps, double r,
                const std::vector<double>& b) {
  linear_("multistep_", "x", multistep_terms(x, eps, r, b));
}

}  // namespace sda_fast::cuda

SDA_FAST_CUDA_IMPL(m) {
  m.impl("multistep", TORCH_BOX(&sda_fast::cuda::multistep));
  m.impl("multistep_", TORCH_BOX(&sda_fast::cuda::multistep_));
}
