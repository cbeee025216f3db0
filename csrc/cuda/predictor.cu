#include <torch/csrc/stable/library.h>

#include "linear.h"

namespace sda_fast::cuda {

Tensor predictor(const Tensor& x, const Tensor& eps, double r, double b) {
  return linear("predictor", predictor_terms(x, eps, r, b));
}

void predictor_(const Tensor& x, const Tensor& eps, double r, double b) {
  linear_("predictor_", "x", predictor_terms(x, eps, r, b));
}

}  // namespace sda_fast::cuda

SDA_FAST_CUDA_IMPL(m) {
  m.impl("predictor", TORCH_BOX(&sda_fast::cuda::predictor));
  m.impl("predictor_", TORCH_BOX(&sda_fast::cuda::predictor_));
}
