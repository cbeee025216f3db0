#pragma once

// The step of the exponential integrator: out = r x + b eps. out may be x.

#include "number.h"

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
  Accumulate<T> r, b;
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
  const auto r = p.r, b = p.b;
  for_runs<T>(end - begin, [&](int64_t first, int64_t size) {
    const int64_t i = begin + first;
    const Widened<T> x(p.x + i, size), eps(p.eps + i, size);
    Narrowed<T> out(p.out + i);
    SDA_FAST_INDEPENDENT
    for (int64_t k = 0; k < size; ++k) out[k] = predictor_element(x[k], eps[k], r, b);
    out.store(size);
  });
}

#else

// A thread a quad. kAligned: all three arrays are aligned to 16 bytes.
template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads) predictor_kernel(Predictor<T> p) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t quad = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; 4 * quad < p.size;
       quad += stride) {
    const int64_t i = 4 * quad, left = p.size - i;
    auto x = widen(load_quad<kAligned>(p.x + i, left));
    const auto eps = widen(load_quad<kAligned>(p.eps + i, left));
#pragma unroll
    for (int k = 0; k < 4; ++k) x.v[k] = predictor_element(x.v[k], eps.v[k], p.r, p.b);
    store_quad<kAligned>(p.out + i, left, narrow<Quad<T>>(x));
  }
}

#endif

}  // namespace sda_fast::SDA_FAST_VARIANT
