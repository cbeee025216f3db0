#pragma once

// The residual of a Gaussian likelihood over its variance,
//
//   out[b, m] = (y[m] - prediction[b, m]) / (std[m]^2 + gamma[m] ratio^2),
//
// exactly 0 where y is NaN, which is not observed, whatever the prediction is there.

#include "number.h"

#ifdef SDA_FAST_GPU
#include "quad.h"
#endif

namespace sda_fast {

// prediction and out (batch, size), y (size), all contiguous; std and gamma (size), or one number
// for all where they are uniform. What was observed is as wide as the arithmetic.
template <typename T>
struct Residual {
  using Number = Accumulate<T>;

  const Number* y;
  const T* prediction;
  const Number* std;
  const Number* gamma;
  T* out;
  int64_t batch, size;
  bool uniform_std, uniform_gamma;
  Number ratio2;
};

}  // namespace sda_fast

namespace sda_fast::SDA_FAST_VARIANT {

template <typename T>
SDA_FAST_FN T residual_element(T y, T prediction, T std, T gamma, T ratio2) {
  const T value = (y - prediction) / multiply_add(gamma, ratio2, std * std);
  return y == y ? value : T(0);
}

#ifndef SDA_FAST_GPU

// The next elements of a sample, at most kRun.
template <bool kUniformStd, bool kUniformGamma, typename T>
inline void residual_run(const Residual<T>& r, int64_t i, int64_t m, int64_t size) {
  const auto *y = r.y + m, *std = r.std + (kUniformStd ? 0 : m);
  const auto* gamma = r.gamma + (kUniformGamma ? 0 : m);
  const auto ratio2 = r.ratio2;
  const Widened<T> prediction(r.prediction + i, size);
  Narrowed<T> out(r.out + i);
  SDA_FAST_INDEPENDENT
  for (int64_t k = 0; k < size; ++k) {
    out[k] = residual_element(y[k], prediction[k], std[kUniformStd ? 0 : k],
                              gamma[kUniformGamma ? 0 : k], ratio2);
  }
  out.store(size);
}

// Elements [begin, end) of the batch * size there are.
template <typename T>
inline void residual(const Residual<T>& r, int64_t begin, int64_t end) {
  const auto run =
      r.uniform_std ? r.uniform_gamma ? residual_run<true, true, T> : residual_run<true, false, T>
      : r.uniform_gamma ? residual_run<false, true, T>
                        : residual_run<false, false, T>;
  for (int64_t i = begin, size; i < end; i += size) {
    const int64_t m = i % r.size, rest = r.size - m < end - i ? r.size - m : end - i;
    size = rest < kRun ? rest : kRun;
    run(r, i, m, size);
  }
}

#else

// A thread a quad of a sample. kAligned: every sample of every array is aligned to 16 bytes.
template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads) residual_kernel(Residual<T> r) {
  const int64_t quads = (r.size + 3) / 4;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t quad = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; quad < r.batch * quads;
       quad += stride) {
    const int64_t b = quad / quads, m = 4 * (quad - b * quads), left = r.size - m;
    const int64_t i = b * r.size + m;
    const auto y = load_quad<kAligned>(r.y + m, left);
    Quad<Accumulate<T>> std = {}, gamma = {};
    if (!r.uniform_std) std = load_quad<kAligned>(r.std + m, left);
    if (!r.uniform_gamma) gamma = load_quad<kAligned>(r.gamma + m, left);
    auto a = widen(load_quad<kAligned>(r.prediction + i, left));
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      a.v[k] = residual_element(y.v[k], a.v[k], r.uniform_std ? *r.std : std.v[k],
                                r.uniform_gamma ? *r.gamma : gamma.v[k], r.ratio2);
    }
    store_quad<kAligned>(r.out + i, left, narrow<Quad<T>>(a));
  }
}

#endif

}  // namespace sda_fast::SDA_FAST_VARIANT
