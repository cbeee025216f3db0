#pragma once

// The activation of fields, written where the next convolution reads it (see padded.h), and the
// vector-Jacobian product,
//
//   activation_pad:      f(x),
//   activation_pad_vjp:  f'(x) times the cotangent of f(x), before the padding.
//
// Without an activation f(x) = x.

#include "activation.h"
#include "padded.h"
#ifndef SDA_FAST_GPU
#include "mlp_score.h"
#endif

namespace sda_fast {

template <typename T>
struct ActivationPad {
  const T* x;  // (batch, channels, height, width)
  FieldStrides x_strides;
  const T* cotangent;  // likewise, for the vector-Jacobian product
  FieldStrides cotangent_strides;
  bool active;  // whether there is an activation
  Activation activation;
  T* out;
  Padded padded;  // nothing is repeated
};

}  // namespace sda_fast

namespace sda_fast::SDA_FAST_VARIANT {

#ifndef SDA_FAST_GPU

// values = f(values), or cotangent f'(values).
SDA_FAST_FN void activate_all(Activation f, const float* cotangent, float* values, int64_t size) {
  for (int64_t i = 0; i < size; i += kLanes) {
    Vector& a = at(values + i);
    a = cotangent == nullptr ? activate(f, a) : at(cotangent + i) * derivative(f, a);
  }
}
SDA_FAST_FN void activate_all(Activation f, const double* cotangent, double* values, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    values[i] = cotangent == nullptr ? activate_one(f, values[i])
                                     : cotangent[i] * derivative_one(f, values[i]);
  }
}

// Rows [begin, end) of the batch * height there are.
template <typename T>
inline void activation_pad(const ActivationPad<T>& a, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const Padded& p = a.padded;
  const FieldStrides &s = a.x_strides, &g = a.cotangent_strides;
  const bool vjp = a.cotangent != nullptr;

  // neighbouring points that lie side by side are worked on together
  const bool dense = s.channel == 1 && s.column == p.channels &&
                     (!vjp || (g.channel == 1 && g.column == p.channels));
  const int64_t together =
      dense ? (kMostChannels / p.channels < p.width ? kMostChannels / p.channels : p.width) : 1;

  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / p.height, h = item % p.height;
    const T* x = a.x + b * s.batch + h * s.row;
    const T* cotangent = vjp ? a.cotangent + b * g.batch + h * g.row : nullptr;
    const T* source = vjp ? cotangent : x;  // without an activation
    const FieldStrides& from = vjp ? g : s;

    padded_row(p, a.out, b, h, [&](T* to, int64_t step) {
      if (!a.active && from.channel == 1) {
        for (int64_t w = 0; w < p.width; w += together) {
          const int64_t n = p.width - w < together ? p.width - w : together;
          __builtin_memcpy(to + w * step, source + w * from.column, n * step * sizeof(T));
        }
        return;
      }
      for (int64_t w = 0; w < p.width; w += together) {
        const int64_t n = p.width - w < together ? p.width - w : together;
        Point<A> values(n * p.channels), cotangents(n * p.channels);
        values.load(x + w * s.column, s.channel);
        if (vjp) cotangents.load(cotangent + w * g.column, g.channel);
        if (a.active) {
          activate_all(a.activation, vjp ? reinterpret_cast<const A*>(cotangents.data) : nullptr,
                       reinterpret_cast<A*>(values.data), values.vectors * Lanes<A>::kCount);
          values.store(to + w * step);
        } else {
          (vjp ? cotangents : values).store(to + w * step);
        }
      }
    });
  }
}

#else

// A thread an element, channels side by side.
template <typename T>
__global__ void __launch_bounds__(kThreads) activation_pad_kernel(ActivationPad<T> a) {
  using A = Accumulate<T>;
  const Padded& p = a.padded;
  const FieldStrides &s = a.x_strides, &g = a.cotangent_strides;
  const int64_t total = p.batch * p.height * p.width * p.channels;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;

  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < total; i += stride) {
    const int64_t point = i / p.channels, c = i - point * p.channels;
    const int64_t line = point / p.width, w = point - line * p.width;
    const int64_t b = line / p.height, h = line - b * p.height;
    const A x = widen(a.x[b * s.batch + c * s.channel + h * s.row + w * s.column]);
    A value = a.active ? activate_one(a.activation, x) : x;
    if (a.cotangent != nullptr) {
      value = widen(a.cotangent[b * g.batch + c * g.channel + h * g.row + w * g.column]);
      if (a.active) value *= derivative_one(a.activation, x);
    }
    put(p, a.out, b, h, w, c, narrow<T>(value));
  }
}

#endif

}  // namespace sda_fast::SDA_FAST_VARIANT
