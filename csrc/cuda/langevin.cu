#include "../kernels/langevin.h"

#include <torch/csrc/stable/library.h>

#include <vector>

#include "launch.h"

namespace sda_fast::cuda {
namespace {

Tensor doubles_beside(const Tensor& x, const std::vector<int64_t>& shape) {
  return torch::stable::new_empty(x, shape, ScalarType::Double);
}

// All contiguous; out may be x.
void run(const Launch& launch, const Tensor& x, const Tensor& eps, double sigma, double tau,
         NoiseKey key, int64_t first_sample, const Tensor& out) {
  if (x.numel() == 0) return;
  const int64_t items = x.size(0) * langevin_blocks(size_from(x, 1));
  const Tensor scratch = doubles_beside(x, {items});
  const Tensor scales = doubles_beside(x, {x.size(0), 2});
  auto* sums = static_cast<double*>(scratch.data_ptr());
  auto* factors = static_cast<double*>(scales.data_ptr());
  dispatch(x, [&]<typename T>(T) {
    const Langevin<T> args = {static_cast<const T*>(x.data_ptr()),
                              static_cast<const T*>(eps.data_ptr()),
                              static_cast<T*>(out.data_ptr()),
                              x.size(0),
                              size_from(x, 1),
                              sigma,
                              tau,
                              key,
                              static_cast<uint32_t>(first_sample)};
    langevin_sums_kernel<T><<<blocks_for(items, 1), kThreads, 0, launch.stream>>>(args, sums);
    check_launch("langevin");
    langevin_reduce_kernel<T>
        <<<blocks_for(args.batch, 1), kThreads, 0, launch.stream>>>(args, sums, factors);
    check_launch("langevin");
    const int64_t quads = args.batch * ((args.size + 3) / 4);
    langevin_kernel<T><<<blocks_for(quads), kLaunchThreads, 0, launch.stream>>>(args, factors);
    check_launch("langevin");
  });
}

}  // namespace

Tensor langevin(const Tensor& x, const Tensor& eps, double sigma, double tau, int64_t seed,
                int64_t step, int64_t correction, int64_t first_sample) {
  check_state("x", x, 1);
  check_like("eps", eps, "x", x);
  const NoiseKey key = check_noise(x, seed, step, correction, first_sample);
  const Launch launch(x);
  const Tensor states = torch::stable::contiguous(x);
  const Tensor out = torch::stable::new_empty(x, x.sizes());
  run(launch, states, torch::stable::contiguous(eps), sigma, tau, key, first_sample, out);
  return out;
}

void langevin_(const Tensor& x, const Tensor& eps, double sigma, double tau, int64_t seed,
               int64_t step, int64_t correction, int64_t first_sample) {
  check_state("x", x, 1);
  check_like("eps", eps, "x", x);
  const NoiseKey key = check_noise(x, seed, step, correction, first_sample);
  const Launch launch(x);
  InPlace target(x);
  run(launch, target.work, target.beside(eps), sigma, tau, key, first_sample, target.work);
  target.finish();
}

}  // namespace sda_fast::cuda

STABLE_TORCH_LIBRARY_IMPL(sda_fast, CUDA, m) {
  m.impl("langevin", TORCH_BOX(&sda_fast::cuda::langevin));
  m.impl("langevin_", TORCH_BOX(&sda_fast::cuda::langevin_));
}
