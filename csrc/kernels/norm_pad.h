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

// Rows [begin, end) of the batch * height there are. Some points of a row take each step together:
// none waits for its own sums.
template <typename T>
inline void norm_pad(const NormPad<T>& n, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const Padded& p = n.padded;
  const FieldStrides& s = n.x_strides;
  Points<A> points(p.channels), shift(p.channels);
  const int64_t together = points.most(), vectors = points.vectors;
  const auto channels = static_cast<A>(p.channels);
  A mean[Points<A>::kMost], scale[Points<A>::kMost];

  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / p.height, h = item % p.height;
    if (n.shift != nullptr) shift.load(n.shift + b * n.shift_stride, 1);

    padded_row(p, n.out, b, h, [&](T* to, int64_t step) {
      for (int64_t w = 0; w < p.width; w += together) {
        const int64_t count = p.width - w < together ? p.width - w : together;
        for (int64_t i = 0; i < count; ++i) {
          points.load(n.x + b * s.batch + h * s.row + (w + i) * s.column, s.channel, i);
          Lanes<A>* a = points[i];
          Lanes<A> sum = {};
          for (int64_t v = 0; v < vectors; ++v) {
            if (n.shift != nullptr) a[v] += shift[0][v];
            sum += a[v];
          }
          mean[i] = sum.sum() / channels;
        }
        for (int64_t i = 0; i < count; ++i) {
          points.fill(mean[i], i);
          Lanes<A>* a = points[i];
          Lanes<A> squares = {};
          for (int64_t v = 0; v < vectors; ++v) {
            a[v] -= mean[i];
            add_product(squares, a[v], a[v]);
          }
          scale[i] = squares.sum() / (channels - 1) + n.eps;
        }
        for (int64_t i = 0; i < count; ++i) scale[i] = 1 / square_root(scale[i]);
        for (int64_t i = 0; i < count; ++i) {
          Lanes<A>* a = points[i];
          for (int64_t v = 0; v < vectors; ++v) a[v] *= scale[i];
          points.store(to + (w + i) * step, i);
          n.scale[item * p.width + w + i] = scale[i];
        }
      }
    });
  }
}

template <typename T>
inline void norm_pad_vjp(const NormPadVjp<T>& n, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const Padded& p = n.padded;
  const FieldStrides &g = n.cotangent_strides, &s = n.normed_strides, &r = n.residual_strides;
  Points<A> sums(p.channels), others(p.channels);
  const int64_t together = sums.most(), vectors = sums.vectors;
  const auto channels = static_cast<A>(p.channels);
  A mean[Points<A>::kMost], along[Points<A>::kMost];

  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / p.height, h = item % p.height;
    padded_row(p, n.out, b, h, [&](T* to, int64_t step) {
      for (int64_t w = 0; w < p.width; w += together) {
        const int64_t count = p.width - w < together ? p.width - w : together;
        for (int64_t i = 0; i < count; ++i) {
          const T* from = n.cotangent + b * g.batch + h * n.up_rows * g.row;
          from += (w + i) * n.up_columns * g.column;
          sums.load(from, g.channel, i);
          Lanes<A>* a = sums[i];
          const Lanes<A>* other = others[i];
          for (int64_t part = 1; part < n.up_rows * n.up_columns; ++part) {
            const int64_t row = part / n.up_columns, column = part % n.up_columns;
            others.load(from + row * g.row + column * g.column, g.channel, i);
            for (int64_t v = 0; v < vectors; ++v) a[v] += other[v];
          }
          others.load(n.normed + b * s.batch + h * s.row + (w + i) * s.column, s.channel, i);
          Lanes<A> sum = {}, products = {};
          for (int64_t v = 0; v < vectors; ++v) {
            sum += a[v];
            add_product(products, a[v], other[v]);
          }
          mean[i] = sum.sum() / channels;
          along[i] = products.sum() / (channels - 1);
        }
        for (int64_t i = 0; i < count; ++i) {
          const A scale = n.scale[item * p.width + w + i];
          Lanes<A>* a = sums[i];
          const Lanes<A>* other = others[i];
          for (int64_t v = 0; v < vectors; ++v) {
            for (int64_t k = 0; k < Lanes<A>::kParts; ++k) {
              auto& part = a[v].parts[k];
              part = scale * (part - mean[i] - along[i] * other[v].parts[k]);
            }
          }
          if (n.residual != nullptr) {
            others.load(n.residual + b * r.batch + h * r.row + (w + i) * r.column, r.channel, i);
            for (int64_t v = 0; v < vectors; ++v) a[v] += other[v];
          }
          sums.store(to + (w + i) * step, i);
        }
      }
    });
  }
}

#else

// A team of lanes a point. Its channels are read once for each sum and once more for the result:
// from the cache, which gives what memory does many times over.
template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads, 1) norm_pad_kernel(NormPad<T> n) {
  using A = Accumulate<T>;
  constexpr int N = kPack<T>;
  const Padded& p = n.padded;
  const FieldStrides& s = n.x_strides;
  const Team team(p.channels, N);

  for_points(p, team, [&](int64_t b, int64_t h, int64_t w) {
    const T* x = n.x + b * s.batch + h * s.row + w * s.column;
    const A* shift = n.shift + b * n.shift_stride;
    const auto modulated = [&](int64_t c, A(&a)[N]) {
      load<kAligned>(x + c * s.channel, s.channel, p.channels - c, a);
      if (n.shift == nullptr) return;
      A by[N];
      load<kAligned>(shift + c, 1, p.channels - c, by);
#pragma unroll
      for (int k = 0; k < N; ++k) a[k] += by[k];
    };

    A sum = 0;
    team.for_packs(p.channels, N, [&](int64_t c) {
      A a[N];
      modulated(c, a);
#pragma unroll
      for (int k = 0; k < N; ++k) sum += a[k];
    });
    const A mean = team.sum(sum) / static_cast<A>(p.channels);
    A squares = 0;
    team.for_packs(p.channels, N, [&](int64_t c) {
      A a[N];
      modulated(c, a);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const A d = a[k] - mean;
        if (kAligned || c + k < p.channels) squares = multiply_add(d, d, squares);
      }
    });
    const A variance = team.sum(squares) / static_cast<A>(p.channels - 1);
    const A scale = 1 / square_root(variance + n.eps);
    if (team.lane == 0) n.scale[(b * p.height + h) * p.width + w] = scale;
    team.for_packs(p.channels, N, [&](int64_t c) {
      A a[N];
      modulated(c, a);
#pragma unroll
      for (int k = 0; k < N; ++k) a[k] = (a[k] - mean) * scale;
      put<kAligned>(p, n.out, b, h, w, c, a);
    });
  });
}

template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads, 1) norm_pad_vjp_kernel(NormPadVjp<T> n) {
  using A = Accumulate<T>;
  constexpr int N = kPack<T>;
  const Padded& p = n.padded;
  const FieldStrides &g = n.cotangent_strides, &s = n.normed_strides, &r = n.residual_strides;
  const Team team(p.channels, N);

  for_points(p, team, [&](int64_t b, int64_t h, int64_t w) {
    const T* from = n.cotangent + b * g.batch + h * n.up_rows * g.row;
    from += w * n.up_columns * g.column;
    const T* normed = n.normed + b * s.batch + h * s.row + w * s.column;
    const T* residual = n.residual + b * r.batch + h * r.row + w * r.column;
    const auto summed = [&](int64_t c, A(&a)[N]) {
#pragma unroll
      for (int k = 0; k < N; ++k) a[k] = 0;
#pragma unroll 1
      for (int64_t row = 0; row < n.up_rows; ++row) {
#pragma unroll 1
        for (int64_t column = 0; column < n.up_columns; ++column) {
          const T* part = from + row * g.row + column * g.column;
          A more[N];
          load<kAligned>(part + c * g.channel, g.channel, p.channels - c, more);
#pragma unroll
          for (int k = 0; k < N; ++k) a[k] += more[k];
        }
      }
    };

    A sum = 0, products = 0;
    team.for_packs(p.channels, N, [&](int64_t c) {
      A a[N], along[N];
      summed(c, a);
      load<kAligned>(normed + c * s.channel, s.channel, p.channels - c, along);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        sum += a[k];
        products = multiply_add(a[k], along[k], products);
      }
    });
    const A mean = team.sum(sum) / static_cast<A>(p.channels);
    const A slope = team.sum(products) / static_cast<A>(p.channels - 1);
    const A scale = n.scale[(b * p.height + h) * p.width + w];
    team.for_packs(p.channels, N, [&](int64_t c) {
      A a[N], other[N];
      summed(c, a);
      load<kAligned>(normed + c * s.channel, s.channel, p.channels - c, other);
#pragma unroll
      for (int k = 0; k < N; ++k) a[k] = scale * (a[k] - mean - slope * other[k]);
      if (n.residual != nullptr) {
        load<kAligned>(residual + c * r.channel, r.channel, p.channels - c, other);
#pragma unroll
        for (int k = 0; k < N; ++k) a[k] += other[k];
      }
      put<kAligned>(p, n.out, b, h, w, c, a);
    });
  });
}

#endif

}  // namespace sda_fast::SDA_FAST_VARIANT
