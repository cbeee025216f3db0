#pragma once

// The activation of fields, written where the next convolution reads it (see padded.h), and the
// vector-Jacobian product,
//
//   activation_pad:      f(x + bias),
//   activation_pad_vjp:  f'(x + bias) times the cotangent of f, before the padding.
//
// Without an activation f(x) = x.

#include "activation.h"
#include "padded.h"

namespace sda_fast {

template <typename T>
struct ActivationPad {
  const T* x;  // (batch, channels, height, width)
  FieldStrides x_strides;
  const T* cotangent;  // likewise, for the vector-Jacobian product
  FieldStrides cotangent_strides;
  bool active;  // whether there is an activation
  Activation activation;
  const Accumulate<T>* bias;  // (channels), or null
  T* out;
  Padded padded;  // nothing is repeated
};

}  // namespace sda_fast

namespace sda_fast::SDA_FAST_VARIANT {

#ifndef SDA_FAST_GPU

// values = f(values), or cotangent f'(values): of whole lines of the cache. What is chosen among is
// chosen once.
template <typename A>
inline void activate_all(Activation f, const A* cotangent, A* values, int64_t size) {
  with_activation(f, [&](auto chosen) {
    constexpr Activation kActivation = decltype(chosen)::kValue;
    if constexpr (sizeof(A) == 4) {
      if (cotangent == nullptr) {
        for (int64_t i = 0; i < size; i += kLanes) {
          at(values + i) = activate<float>(kActivation, at(values + i)).value;
        }
      } else {
        for (int64_t i = 0; i < size; i += kLanes) {
          const Vector slope = activate<float>(kActivation, at(values + i)).derivative;
          at(values + i) = at(cotangent + i) * slope;
        }
      }
    } else {
      for (int64_t i = 0; i < size; ++i) {
        const auto y = activate<A>(kActivation, values[i]);
        values[i] = cotangent == nullptr ? y.value : cotangent[i] * y.derivative;
      }
    }
  });
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
  const bool copied = !a.active && (vjp || a.bias == nullptr);

  Points<A> bias((a.bias != nullptr ? together : 0) * p.channels);
  for (int64_t i = 0; i < bias.channels; ++i) {
    reinterpret_cast<A*>(bias.data)[i] = a.bias[i % p.channels];
  }
  bias.fill(A(0));

  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / p.height, h = item % p.height;
    const T* x = a.x + b * s.batch + h * s.row;
    const T* cotangent = vjp ? a.cotangent + b * g.batch + h * g.row : nullptr;
    const T* source = vjp ? cotangent : x;  // without an activation
    const FieldStrides& from = vjp ? g : s;

    padded_row(p, a.out, b, h, [&](T* to, int64_t step) {
      if (copied && from.channel == 1) {
        for (int64_t w = 0; w < p.width; w += together) {
          const int64_t n = p.width - w < together ? p.width - w : together;
          __builtin_memcpy(to + w * step, source + w * from.column, n * step * sizeof(T));
        }
        return;
      }
      for (int64_t w = 0; w < p.width; w += together) {
        const int64_t n = p.width - w < together ? p.width - w : together;
        Points<A> values(n * p.channels), cotangents(n * p.channels);
        values.load(x + w * s.column, s.channel);
        if (a.bias != nullptr) {
          for (int64_t i = 0; i < values.vectors; ++i) values.data[i] += bias.data[i];
        }
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

// A team of lanes a point. f(x + bias), or the cotangent times f'(x + bias).
template <typename T, bool kAligned, typename F>
__device__ __forceinline__ void pad_points(const ActivationPad<T>& a, const F& f) {
  using A = Accumulate<T>;
  constexpr int N = kPack<T>;
  const Padded& p = a.padded;
  const FieldStrides &s = a.x_strides, &g = a.cotangent_strides;
  const Team team(p.channels, N);

  for_points(p, team, [&](int64_t b, int64_t h, int64_t w) {
    const T* x = a.x + b * s.batch + h * s.row + w * s.column;
    const T* cotangent = a.cotangent + b * g.batch + h * g.row + w * g.column;
    team.for_packs(p.channels, N, [&](int64_t c) {
      A values[N], cotangents[N];
      load<kAligned>(x + c * s.channel, s.channel, p.channels - c, values);
      if (a.bias != nullptr) {
        A bias[N];
        load<kAligned>(a.bias + c, 1, p.channels - c, bias);
#pragma unroll
        for (int k = 0; k < N; ++k) values[k] += bias[k];
      }
      if (a.cotangent != nullptr) {
        load<kAligned>(cotangent + c * g.channel, g.channel, p.channels - c, cotangents);
      }
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const Activated<A> y = f(values[k]);
        values[k] = a.cotangent != nullptr ? cotangents[k] * y.derivative : y.value;
      }
      put<kAligned>(p, a.out, b, h, w, c, values);
    });
  });
}

template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads, 1) activation_pad_kernel(ActivationPad<T> a) {
  using A = Accumulate<T>;
  if (!a.active) {
    return pad_points<T, kAligned>(a, [](A x) { return Activated<A>{x, A(1)}; });
  }
  with_activation(a.activation, [&](auto chosen) {
    constexpr Activation kActivation = decltype(chosen)::kValue;
    pad_points<T, kAligned>(a, [](A x) { return activate<A>(kActivation, x); });
  });
}

#endif

}  // namespace sda_fast::SDA_FAST_VARIANT
