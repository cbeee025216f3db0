#include "../kernels/guide_langevin.h"

#include <torch/csrc/stable/library.h>

#include "../correction.h"
#include "linear.h"

namespace sda_fast::cuda {
namespace {

// Floor: (terms + 3) sizeof(T) bytes an element: eps, direct, through and x in, eps and x out.
template <typename T, int kTerms, bool kAligned>
void run_whole(const Launch& launch, const Linear<T>& guide, const Langevin<T>& args) {
  const int64_t quads = (args.size + 3) / 4;
  const int64_t threads = std::min<int64_t>((quads + 31) / 32 * 32, kThreads);
  launch("guide_langevin_", guide_langevin_sample_kernel<T, kTerms, kAligned>,
         blocks_for(args.batch, 1), static_cast<unsigned int>(threads), 0, guide, args);
}

// Floor: (terms + 4) sizeof(T) bytes an element, as the new eps is read once more.
template <typename T, int kTerms, bool kAligned>
void run_in_blocks(const Launch& launch, const Linear<T>& guide, const Langevin<T>& args,
                   double* sums, double* scales) {
  const int64_t items = args.batch * langevin_blocks(args.size);
  const int64_t quads = args.batch * ((args.size + 3) / 4);
  launch("guide_langevin_", guide_langevin_sums_kernel<T, kTerms, kAligned>, blocks_for(items, 1),
         kThreads, 0, guide, args, sums);
  launch("guide_langevin_", langevin_reduce_kernel<T>, blocks_for(args.batch, 1), kThreads, 0, args,
         sums, scales);
  launch("guide_langevin_", langevin_kernel<T, kAligned>, blocks_for(quads), kThreads, 0, args,
         scales);
}

}  // namespace

void guide_langevin_(const Tensor& x, const Tensor& eps, const Tensor& direct,
                     const std::optional<Tensor>& through, double mu, double sigma, double tau,
                     int64_t seed, int64_t step, int64_t correction, int64_t first_sample) {
  const Correction of(x, eps, sigma, tau, seed, step, correction, first_sample);
  const Launch launch(x);
  Guided guided(x, eps, direct, through, mu, sigma);
  if (x.numel() == 0) return;

  dispatch(x, [&]<typename T>(T) {
    const Linear<T> guide = linear_args<T>(guided.terms, guided.eps.work);
    const Langevin<T> args = langevin_args<T>(of, guided.x.work, guided.eps.work, guided.x.work);
    const bool aligned =
        is_aligned(guide) && is_aligned(args.x) && samples_aligned(args.batch, args.size);
    with_count<2, 3>(guide.count, [&](auto terms) {
      if (args.size <= kBlock) {
        const auto go = aligned ? run_whole<T, terms(), true> : run_whole<T, terms(), false>;
        return go(launch, guide, args);
      }
      const Tensor sums = allocate(x, {x.size(0), langevin_blocks(args.size)}, ScalarType::Double);
      const Tensor scales = allocate(x, {x.size(0), 2}, ScalarType::Double);
      const auto go = aligned ? run_in_blocks<T, terms(), true> : run_in_blocks<T, terms(), false>;
      go(launch, guide, args, static_cast<double*>(sums.data_ptr()),
         static_cast<double*>(scales.data_ptr()));
    });
  });
  guided.finish();
}

}  // namespace sda_fast::cuda

SDA_FAST_CUDA_IMPL(m) { m.impl("guide_langevin_", TORCH_BOX(&sda_fast::cuda::guide_langevin_)); }
