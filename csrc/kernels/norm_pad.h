#pragma once

// LayerNorm over the channels of modulated fields, written where the next convolution reads it (see
// padded.h), and the vector-Jacobian product,
//
//   norm_pad:      n = (a - mean a) / sqrt(var a + eps),  a = x + shift, var unbiased,
//   norm_pad_vjp:  (g - mean g - n sum(g n) / (C - 1)) / sqrt(var a + eps) + residual,
//
// at each of their points, g the cotangent of n summed over what the point was repeated to.

#include "padded.h"

namespace sda_fast {

template <typename T>
struct NormPad {
  const T* x;  // (batch, channels, height, width)
  FieldStrides x_strides;
  const Accumulate<T>* shift;  // (1 or batch, channels), or null
  int64_t shift_stride;        // between the fields' shifts, or 0
  Accumulate<T> eps;
  T* out;
  Accumulate<T>* scale;  // (batch, height, width): 1 / sqrt(var a + eps)
  Padded padded;
};

template <typename T>
struct NormPadVjp {
  const T* cotangent;  // (batch, channels, up_rows height, up_columns width), before the padding
  FieldStrides cotangent_strides;
  const T* normed;  // (batch, channels, height, width): n
  FieldStrides normed_strides;
  const Accumulate<T>* scale;
  const T* residual;  // (batch, channels, height, width), or null
  FieldStrides residual_strides;
  int64_t up_rows, up_columns;
  T* out;
  Padded padded;  // of the result: nothing is repeated
};

}  // namespace sda_fast

namespace sda_fast::SDA_FAST_VARIANT {

#ifndef SDA_FAST_GPU

// Rows [begin, end) of the batch * height there are.
template <typename T>
inline void norm_pad(const NormPad<T>& n, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const Padded& p = n.padded;
  const FieldStrides& s = n.x_strides;
  Point<A> point(p.channels), shift(p.channels);

  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / p.height, h = item % p.height;
    if (n.shift != nullptr) shift.load(n.shift + b * n.shift_stride, 1);

    padded_row(p, n.out, b, h, [&](T* to, int64_t step) {
      for (int64_t w = 0; w < p.width; ++w) {
        point.load(n.x + b * s.batch + h * s.row + w * s.column, s.channel);
        if (n.shift != nullptr) {
          for (int64_t i = 0; i < point.vectors; ++i) point.data[i] += shift.data[i];
        }
        const A mean = point.sum() / static_cast<A>(p.channels);
        point.fill(mean);
        typename Point<A>::Vector squares = {};
        for (int64_t i = 0; i < point.vectors; ++i) {
          point.data[i] -= mean;
          squares += point.data[i] * point.data[i];
        }
        const A variance = Lanes<A>::sum(squares) / static_cast<A>(p.channels - 1);
        const A scale = 1 / square_root(variance + n.eps);
        for (int64_t i = 0; i < point.vectors; ++i) point.data[i] *= scale;
        point.store(to + w * step);
        n.scale[item * p.width + w] = scale;
      }
    });
  }
}

template <typename T>
inline void norm_pad_vjp(const NormPadVjp<T>& n, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const Padded& p = n.padded;
  const FieldStrides &g = n.cotangent_strides, &s = n.normed_strides, &r = n.residual_strides;
  Point<A> sum(p.channels), other(p.channels);

  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / p.height, h = item % p.height;
    padded_row(p, n.out, b, h, [&](T* to, int64_t step) {
      for (int64_t w = 0; w < p.width; ++w) {
        const T* from = n.cotangent + b * g.batch + h * n.up_rows * g.row;
        from += w * n.up_columns * g.column;
        sum.load(from, g.channel);
        for (int64_t part = 1; part < n.up_rows * n.up_columns; ++part) {
          const int64_t row = part / n.up_columns, column = part % n.up_columns;
          other.load(from + row * g.row + column * g.column, g.channel);
          for (int64_t i = 0; i < sum.vectors; ++i) sum.data[i] += other.data[i];
        }
        other.load(n.normed + b * s.batch + h * s.row + w * s.column, s.channel);
        typename Point<A>::Vector products = {};
        for (int64_t i = 0; i < sum.vectors; ++i) products += sum.data[i] * other.data[i];

        const A scale = n.scale[item * p.width + w];
        const A mean = sum.sum() / static_cast<A>(p.channels);
        const A along = Lanes<A>::sum(products) / static_cast<A>(p.channels - 1);
        for (int64_t i = 0; i < sum.vectors; ++i) {
          sum.data[i] = scale * (sum.data[i] - mean - along * other.data[i]);
        }
        if (n.residual != nullptr) {
          other.load(n.residual + b * r.batch + h * r.row + w * r.column, r.channel);
          for (int64_t i = 0; i < sum.vectors; ++i) sum.data[i] += other.data[i];
        }
        sum.store(to + w * step);
      }
    });
  }
}

#else

template <typename A>
__device__ __forceinline__ A warp_sum(A value) {
#pragma unroll
  for (int width = 16; width > 0; width /= 2) value += __shfl_xor_sync(~0u, value, width);
  return value;
}

// A warp a point: its lanes stride over the channels, which stay in the cache. Unrolled, the way
// back would have too few registers.
template <typename T>
__global__ void __launch_bounds__(kThreads) norm_pad_kernel(NormPad<T> n) {
  using A = Accumulate<T>;
  const Padded& p = n.padded;
  const FieldStrides& s = n.x_strides;
  const int64_t lane = threadIdx.x % 32;

  for_points(p, [&](int64_t b, int64_t h, int64_t w) {
    const T* x = n.x + b * s.batch + h * s.row + w * s.column;
    const A* shift = n.shift + b * n.shift_stride;
    const auto at = [&](int64_t c) {
      const A a = widen(x[c * s.channel]);
      return n.shift != nullptr ? a + shift[c] : a;
    };

    A sum = 0;
    for (int64_t c = lane; c < p.channels; c += 32) sum += at(c);
    const A mean = warp_sum(sum) / static_cast<A>(p.channels);
    A squares = 0;
    for (int64_t c = lane; c < p.channels; c += 32) {
      const A d = at(c) - mean;
      squares = multiply_add(d, d, squares);
    }
    const A variance = warp_sum(squares) / static_cast<A>(p.channels - 1);
    const A scale = 1 / square_root(variance + n.eps);
    if (lane == 0) n.scale[(b * p.height + h) * p.width + w] = scale;
    for (int64_t c = lane; c < p.channels; c += 32) {
      put(p, n.out, b, h, w, c, narrow<T>((at(c) - mean) * scale));
    }
  });
}

template <typename T>
__global__ void __launch_bounds__(kThreads) norm_pad_vjp_kernel(NormPadVjp<T> n) {
  using A = Accumulate<T>;
  const Padded& p = n.padded;
  const FieldStrides &g = n.cotangent_strides, &s = n.normed_strides, &r = n.residual_strides;
  const int64_t lane = threadIdx.x % 32;

  for_points(p, [&](int64_t b, int64_t h, int64_t w) {
    const T* from = n.cotangent + b * g.batch + h * n.up_rows * g.row;
    from += w * n.up_columns * g.column;
    const T* normed = n.normed + b * s.batch + h * s.row + w * s.column;
    const T* residual = n.residual + b * r.batch + h * r.row + w * r.column;
    const auto at = [&](int64_t c) {
      A sum = 0;
#pragma unroll 1
      for (int64_t row = 0; row < n.up_rows; ++row) {
#pragma unroll 1
        for (int64_t column = 0; column < n.up_columns; ++column) {
          sum += widen(from[row * g.row + column * g.column + c * g.channel]);
        }
      }
      return sum;
    };

    A sum = 0, products = 0;
#pragma unroll 1
    for (int64_t c = lane; c < p.channels; c += 32) {
      const A a = at(c);
      sum += a;
      products = multiply_add(a, widen(normed[c * s.channel]), products);
    }
    const A mean = warp_sum(sum) / static_cast<A>(p.channels);
    const A along = warp_sum(products) / static_cast<A>(p.channels - 1);
    const A scale = n.scale[(b * p.height + h) * p.width + w];
#pragma unroll 1
    for (int64_t c = lane; c < p.channels; c += 32) {
      A a = scale * (at(c) - mean - along * widen(normed[c * s.channel]));
      if (n.residual != nullptr) a += widen(residual[c * r.channel]);
      put(p, n.out, b, h, w, c, narrow<T>(a));
    }
  });
}

#endif

}  // namespace sda_fast::SDA_FAST_VARIANT
