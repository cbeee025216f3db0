#include <torch/csrc/stable/library.h>

#include "linear.h"

namespace sda_fast::cuda {

Tensor denoise(const Tensor& x, const Tensor& eps, double mu, double sigma) {
  return linear("denoise", denoise_terms(x, eps, mu, sigma));
}

}  // namespace sda_fast::cuda

SDA_FAST_CUDA_IMPL(m) { m.impl("denoise", TORCH_BOX(&sda_fast::cuda::denoise)); }
