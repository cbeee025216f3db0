#pragma once

// The posterior's noise estimate and the predictor's step with it, in one pass:
//
//   eps <- eps - sigma / mu direct + sigma^2 / mu through
//   x   <- r x + b eps + sum_j past_b[j] past[j]
//
// Both are linear combinations (linear.h), the second with the first's result as its second term.
// On the CPU they take turns at tiles that stay in the cache.

#include "linear.h"

namespace sda_fast::SDA_FAST_VARIANT {

#ifdef SDA_FAST_GPU

// A thread a quad. kAligned: all arrays are aligned to 16 bytes.
template <typename T, int kGuide, int kStep, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    guide_predictor_kernel(Linear<T> guide, Linear<T> step) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t quad = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; 4 * quad < step.size;
       quad += stride) {
    const int64_t i = 4 * quad, left = step.size - i;
    const Quad<T> eps = linear_quad<kGuide, kAligned>(guide, i, left);
    Quad<Accumulate<T>> terms[kStep];
#pragma unroll
    for (int j = 0; j < kStep; ++j) {
      terms[j] = widen(j == 1 ? eps : load_quad<kAligned>(step.terms[j] + i, left));
    }
    store_quad<kAligned>(guide.out + i, left, eps);
    store_quad<kAligned>(step.out + i, left, narrow<Quad<T>>(linear_element(terms, step.weights)));
  }
}

#endif

}  // namespace sda_fast::SDA_FAST_VARIANT
