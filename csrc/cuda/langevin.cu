#include "../kernels/langevin.h"

#include <torch/csrc/stable/library.h>

#include <vector>

#include "../correction.h"
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
void run(const Launch& launch, const Correction& of, const Tensor& x, const Tensor& eps,
         const Tensor& out) {
  if (x.numel() == 0) return;
  dispatch(x, [&]<typename T>(T) {
    const Langevin<T> args = langevin_args<T>(of, x, eps, out);
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
  const Correction of(x, eps, sigma, tau, seed, step, correction, first_sample);
  const Launch launch(x);
  const Tensor states = as_contiguous(x);
  const Tensor out = allocate(x, sizes({}, x, 0), x.scalar_type());
  run(launch, of, states, as_contiguous(eps), out);
  return out;
}

void langevin_(const Tensor& x, const Tensor& eps, double sigma, double tau, int64_t seed,
               int64_t step, int64_t correction, int64_t first_sample) {
  const Correction of(x, eps, sigma, tau, seed, step, correction, first_sample);
  const Launch launch(x);
  InPlace target(x);
  run(launch, of, target.work, target.beside(eps), target.work);
  target.finish();
}

}  // namespace sda_fast::cuda

SDA_FAST_CUDA_IMPL(m) {
  m.impl("langevin", TORCH_BOX(&sda_fast::cuda::langevin));
  m.impl("langevin_", TORCH_BOX(&sda_fast::cuda::langevin_));
}
