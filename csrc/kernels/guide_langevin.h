#pragma once

// The posterior's noise estimate and the Langevin correction with it (langevin.h):
//
//   eps <- eps - sigma / mu direct + sigma^2 / mu through
//   x   <- x - sigma (delta eps + sqrt(2 delta) z),   delta = tau / mean eps^2
//
// The estimate (linear.h) is made and stored in the first of the correction's passes, that sums.

#include "langevin.h"
#include "linear.h"

namespace sda_fast::SDA_FAST_VARIANT {

#ifdef SDA_FAST_GPU

template <int kTerms, bool kAligned, typename T>
struct GuidedEps {
  __device__ __forceinline__ Quad<T> operator()(int64_t i, int64_t left) const {
    const Quad<T> eps = linear_quad<kTerms, kAligned>(guide, i, left);
    store_quad<kAligned>(guide.out + i, left, eps);
    return eps;
  }

  const Linear<T>& guide;
};

template <typename T, int kTerms, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    guide_langevin_sample_kernel(Linear<T> guide, Langevin<T> l) {
  langevin_samples<kAligned>(l, GuidedEps<kTerms, kAligned, T>{guide});
}

template <typename T, int kTerms, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    guide_langevin_sums_kernel(Linear<T> guide, Langevin<T> l, double* scratch) {
  langevin_sums(l, scratch, GuidedEps<kTerms, kAligned, T>{guide});
}

#endif

}  // namespace sda_fast::SDA_FAST_VARIANT
