#include "../kernels/langevin.h"

#include <torch/csrc/stable/library.h>

#include <vector>

#include "launch.h"

namespace sda_fast::cuda {
namespace {

// Floor: 3 sizeof(T) bytes an element, as x, eps and out go over the bus once each.
template <typename T, bool kAligned>
void run_whole(const Launch& launch, const Langevin<T>& args) {
  const int64_t quads = (args.size + 3) / 4;
  const int64_t threads = std::min<int64_t>((quads + 31) / 32 * 32, kThreads);
  launch("langevin", langevin_sample_kernel<T, kAligned>, blocks_for(args.batch, 1),
         static_cast<unsigned int>(threads), 0, args);
}

// Floor: 4 sizeof(T) bytes an element, as eps is read twice.
template <typename T, bool kAligned>
void run_in_blocks(const Launch& launch, const Langevin<T>& args, double* sums, double* scales) {
  const int64_t items = args.batch * langevin_blocks(args.size);
  const int64_t quads = args.batch * ((args.size + 3) / 4);
  launch("langevin", langevin_sums_kernel<T, kAligned>, blocks_for(items, 1), kThreads, 0, args,
         sums);
  launch("langevin", langevin_reduce_kernel<T>, blocks_for(args.batch, 1), kThreads, 0, args, sums,
         scales);
  launch("langevin", langevin_kernel<T, kAligned>, blocks_for(quads), kThreads, 0, args, scales);
}

// All contiguous; out may be x.
void run(const Launch& launch, const Tensor& x, const Tensor& eps, double sigma, double tau,
         NoiseKey key, int64_t first_sample, const Tensor& out) {
  if (x.numel() == 0) return;
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
    const bool aligned = is_aligned(args.x) && is_aligned(args.eps) && is_aligned(args.out) &&
                         samples_aligned(args.batch, args.size);
    if (args.size <= kBlock) {
      return aligned ? run_whole<T, true>(launch, args) : run_whole<T, false>(launch, args);
    }
    const Tensor sums = allocate(x, {x.size(0), langevin_blocks(args.size)}, ScalarType::Double);
    const Tensor scales = allocate(x, {x.size(0), 2}, ScalarType::Double);
    const auto go = aligned ? run_in_blocks<T, true> : run_in_blocks<T, false>;
    go(launch, args, static_cast<double*>(sums.data_ptr()),
       static_cast<double*>(scales.data_ptr()));
  });
}

}  // namespace

Tensor langevin(const Tensor& x, const Tensor& eps, double sigma, double tau, int64_t seed,
                int64_t step, int64_t correction, int64_t first_sample) {
  check_state("x", x, 1);
  check_like("eps", eps, "x", x);
  const NoiseKey key = check_noise(x, seed, step, correction, first_sample);
  const Launch launch(x);
  const Tensor states = as_contiguous(x);
  const Tensor out = allocate(x, sizes({}, x, 0), x.scalar_type());
  run(launch, states, as_contiguous(eps), sigma, tau, key, first_sample, out);
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

SDA_FAST_CUDA_IMPL(m) {
  m.impl("langevin", TORCH_BOX(&sda_fast::cuda::langevin));
  m.impl("langevin_", TORCH_BOX(&sda_fast::cuda::langevin_));
}
