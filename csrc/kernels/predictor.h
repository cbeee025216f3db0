#pragma once

// The step of the exponential integrator: out = r x + b eps. out may be x.

#include "config.h"

#ifdef SDA_FAST_GPU
#include "quad.h"
#endif

namespace sda_fast {

template <typename T>
struct Predictor {
  const T* x;
  const T* eps;
  T* out;
  int64_t size;
  T r, b;
};

}  // namespace sda_fast

namespace sda_fast::SDA_FAST_VARIANT {

template <typename T>
SDA_FAST_FN T predictor_element(T x, T eps, T r, T b) {
  return multiply_add(b, eps, r * x);
}

#ifndef SDA_FAST_GPU

template <typename T>
inline void predictor(const Predictor<T>& p, int64_t begin, int64_t end) {
  const T *x = p.x, *eps = p.eps;
  const T r = p.r, b = p.b;
  T* out = p.out;
  SDA_FAST_INDEPENDENT
  for (int64_t i = begin; i < end; ++i) out[i] = predictor_element(x[i], eps[i], r, b);
}

#else

// A thread a quad. kAligned: all three arrays are aligned to 16 bytes.
template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads) predictor_kernel(Predictor<T> p) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t quad = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; 4 * quad < p.size;
       quad += stride) {
    const int64_t i = 4 * quad, left = p.size - i;
    Quad<T> x = load_quad<kAligned>(p.x + i, left);
    const Quad<T> eps = load_quad<kAligned>(p.eps + i, left);
#pragma unroll
    for (int k = 0; k < 4; ++k) x.v[k] = predictor_element(x.v[k], eps.v[k], p.r, p.b);
    store_quad<kAligned>(p.out + i, left, x);
  }
}

#endif

}  // namespace sda_fast::SDA_FAST_VARIANT
