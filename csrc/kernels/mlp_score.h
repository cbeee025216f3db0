#pragma once

// A residual MLP over the windows of trajectories, forward and the vector-Jacobian product with
// respect to the trajectories, a tile of windows at a time.
//
// The network is a linear map of the window (and of its mask), then for each of `widths` a linear
// map where the width changes and a block
//
//   y = x + W2 act(W1 n + b1) + b2,   n = (x - mean x) / sqrt(var x + 1e-5), var unbiased.
//
// A tile's activations are stored feature by feature, its windows side by side in vectors: a matrix
// product is then a broadcast weight times vectors, LayerNorm, activation and residual work in
// place, and what a window's result is does not depend on the other windows. They stay in cache
// through all layers.
//
// Weights are packed in panels of kPanel output features, each panel (in, kPanel), and the output
// features padded with zeros to whole panels. In their order: of the first map only the weights
// (its bias, which depends on time and context, is given); of a linear map W, b; of a block W1, b1,
// W2, b2. The transposed weights likewise, without biases.

#include "activation.h"

namespace sda_fast {

struct MlpScore {
  const float* x;           // (batch, length, features)
  const int64_t* start;     // (count)
  const int8_t* mask;       // (count, window): which rows are states; the others are zero
  const float* bias;        // (1 or batch, first width): the first map's
  int64_t bias_stride;      // between the samples' biases, or 0
  const float* weights;     // packed
  const float* transposed;  // packed, for the vector-Jacobian product
  const int64_t* widths;    // (depth): of the blocks; the last is window * features
  int64_t depth;
  int64_t batch, length, features, count, window;
  bool bfloat16;      // the products' factors
  bool length_aware;  // the mask is an input too
  Activation activation;
  const float* cotangent;  // (batch, length, features), for the vector-Jacobian product
  const int8_t* weight;    // (count, window), likewise: of the composition
  int64_t first, chunk;    // the windows of this call: [first, first + chunk) of each trajectory
  float* out;              // (batch, chunk, window * features)
  float* kept;             // what the way back needs of the first windows, tile by tile
  int64_t kept_rows;       // how many windows it holds
};

}  // namespace sda_fast

#ifndef SDA_FAST_GPU

namespace sda_fast::SDA_FAST_VARIANT {

constexpr int64_t kPanel = 8;
SDA_FAST_FN int64_t mlp_padded(int64_t width) { return (width + kPanel - 1) / kPanel * kPanel; }

// Accumulators fill the registers: kWide vectors of windows times kFeatures features.
#if defined(__AVX512F__)
constexpr int kWide = 2, kFeatures = 8;
#else
constexpr int kWide = 3, kFeatures = 4;
#endif

constexpr int64_t kMlpTile = kWide * kLanes;

struct Pair {
  Vector first, second;
};

// The factors of products, and how they are multiplied: `steps` vectors of an input each. `store`
// makes factors of the inputs i (even) and i + 1, which may lie in the same place; `load` returns
// them.
struct Float32 {
  static constexpr bool kPacked = false;  // or the factors are the inputs themselves
  static SDA_FAST_FN int64_t steps(int64_t inputs) { return inputs; }
  static SDA_FAST_FN void store(float* factors, int64_t i, int64_t row, Pair pair) {
    at(factors + i * row) = pair.first;
    at(factors + (i + 1) * row) = pair.second;
  }
  static SDA_FAST_FN Pair load(const float* factors, int64_t i, int64_t row) {
    return {at(factors + i * row), at(factors + (i + 1) * row)};
  }
  static SDA_FAST_FN Vector add(Vector sum, Vector value, float factor) {
    return sum + value * splat(factor);
  }
};

#if defined(__AVX512BF16__)
struct Bfloat16 {
  static constexpr bool kPacked = true;
  static SDA_FAST_FN int64_t steps(int64_t inputs) { return (inputs + 1) / 2; }

  // A pair in place of a float, the first in its lower half.
  static SDA_FAST_FN void store(float* factors, int64_t i, int64_t row, Pair pair) {
    const __m512i order =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const auto rounded = (__m512i)_mm512_cvtne2ps_pbh((__m512)pair.second, (__m512)pair.first);
    at(factors + i / 2 * row) = (Vector)_mm512_permutexvar_epi16(order, rounded);
  }
  static SDA_FAST_FN Pair load(const float* factors, int64_t i, int64_t row) {
    const Ints pair = reinterpret_cast<const Ints&>(at(factors + i / 2 * row));
    const Ints first = pair << 16, second = pair & static_cast<int>(0xFFFF0000);
    return {reinterpret_cast<const Vector&>(first), reinterpret_cast<const Vector&>(second)};
  }

  static SDA_FAST_FN Vector add(Vector sum, Vector value, float factor) {
    return static_cast<Vector>(
        _mm512_dpbf16_ps(static_cast<__m512>(sum), (__m512bh)value, (__m512bh)splat_bits(factor)));
  }
  static SDA_FAST_FN Vector splat_bits(float pair) {
    return static_cast<Vector>(
        _mm512_castsi512_ps(_mm512_set1_epi32(__builtin_bit_cast(int, pair))));
  }
};
#endif

// The factors of `in` (inputs, row): if packed, in `room`.
template <typename P>
inline const float* factors(const float* in, int64_t inputs, int64_t row, float* room) {
  if (!P::kPacked) return in;
  for (int64_t i = 0; i < inputs; i += 2) {
    for (int64_t c = 0; c < row; c += kLanes) {
      const float* pair = in + i * row + c;
      P::store(room + c, i, row, {at(pair), i + 1 < inputs ? at(pair + row) : Vector{}});
    }
  }
  return room;
}

struct Nothing {
  SDA_FAST_FN void operator()(int64_t) const {}
};

// out = W in + b (+ out if `add`) for a tile of R vectors of windows, of the factors of `in`
// (inputs, R): out (outputs, R). Without b it starts from zero. after(o) is called when the
// features [o, o + kFeatures) are there, while they are in cache.
template <int R, typename P, typename F = Nothing>
inline void product(const float* in, int64_t inputs, const float* w, const float* b,
                    int64_t outputs, bool add, float* out, const F& after = {}) {
  constexpr int64_t kRow = R * kLanes;
  const int64_t steps = P::steps(inputs);
  for (int64_t o = 0; o < outputs; o += kFeatures) {
    const float* panel = w + o / kPanel * kPanel * steps + o % kPanel;
    Vector sum[kFeatures][R];
    for (int f = 0; f < kFeatures; ++f) {
      for (int r = 0; r < R; ++r) sum[f][r] = splat(b != nullptr ? b[o + f] : 0.0f);
    }
    for (int64_t i = 0; i < steps; ++i) {
      Vector value[R];
      for (int r = 0; r < R; ++r) value[r] = at(in + i * kRow + r * kLanes);
      for (int f = 0; f < kFeatures; ++f) {
        const float factor = panel[i * kPanel + f];
        for (int r = 0; r < R; ++r) sum[f][r] = P::add(sum[f][r], value[r], factor);
      }
    }
    for (int f = 0; f < kFeatures; ++f) {
      for (int r = 0; r < R; ++r) {
        Vector& result = at(out + (o + f) * kRow + r * kLanes);
        result = add ? result + sum[f][r] : sum[f][r];
      }
    }
    after(o);
  }
}

// Asks for what is read soon and may lie in memory far away.
inline void prefetch(const float* from, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) __builtin_prefetch(from + i);
}

// Puts factors of f(a, i, c) in place of features [o, o + kFeatures) of a (features, R), i being
// the first of a pair of features and c that of a vector of windows. Packed ones take the places
// of features that have been replaced before.
template <int R, typename P, typename F>
inline void replace(float* a, int64_t o, const F& f) {
  constexpr int64_t kRow = R * kLanes;
  for (int64_t i = o; i < o + kFeatures; i += 2) {
    for (int64_t c = 0; c < kRow; c += kLanes) {
      P::store(a + c, i, kRow, f(Float32::load(a + c, i, kRow), i, c));
    }
  }
}

// The factors of n = (x - mean) * scale, scale = 1 / sqrt(variance + 1e-5), over the features.
template <int R, typename P>
inline void normalise(const float* x, int64_t width, float* n, float* scale) {
  constexpr int64_t kRow = R * kLanes;
  Vector mean[R] = {}, square[R] = {};
  for (int64_t i = 0; i < width; ++i) {
    for (int r = 0; r < R; ++r) mean[r] += at(x + i * kRow + r * kLanes);
  }
  for (int r = 0; r < R; ++r) mean[r] *= 1.0f / static_cast<float>(width);
  for (int64_t i = 0; i < width; ++i) {
    for (int r = 0; r < R; ++r) {
      const Vector d = at(x + i * kRow + r * kLanes) - mean[r];
      square[r] += d * d;
    }
  }
  for (int r = 0; r < R; ++r) {
    const Vector variance = square[r] / static_cast<float>(width - 1);
    at(scale + r * kLanes) = inverse_square_root(variance + 1e-5f);
  }
  for (int64_t i = 0; i < width; i += 2) {
    for (int r = 0; r < R; ++r) {
      const float* from = x + i * kRow + r * kLanes;
      const Vector factor = at(scale + r * kLanes);
      const Vector second = i + 1 < width ? (at(from + kRow) - mean[r]) * factor : Vector{};
      P::store(n + r * kLanes, i, kRow, {(at(from) - mean[r]) * factor, second});
    }
  }
}

// g += the cotangent of x, for the cotangent gn of n, padded with zeros, and n's factors:
// scale (gn - mean gn - n sum(gn n) / (w - 1)).
template <int R, typename P>
inline void normalise_vjp(const float* gn, const float* n, const float* scale, int64_t width,
                          float* g) {
  constexpr int64_t kRow = R * kLanes;
  Vector mean[R] = {}, along[R] = {};
  for (int64_t i = 0; i < width; i += 2) {
    for (int r = 0; r < R; ++r) {
      const int64_t c = r * kLanes;
      const Pair normed = P::load(n + c, i, kRow), of_n = Float32::load(gn + c, i, kRow);
      mean[r] += of_n.first + of_n.second;
      along[r] += of_n.first * normed.first + of_n.second * normed.second;
    }
  }
  for (int r = 0; r < R; ++r) {
    mean[r] *= 1.0f / static_cast<float>(width);
    along[r] *= 1.0f / static_cast<float>(width - 1);
  }
  for (int64_t i = 0; i < width; i += 2) {
    for (int r = 0; r < R; ++r) {
      const int64_t c = r * kLanes;
      const Vector factor = at(scale + c);
      const Pair normed = P::load(n + c, i, kRow), of_n = Float32::load(gn + c, i, kRow);
      at(g + i * kRow + c) += factor * (of_n.first - mean[r] - normed.first * along[r]);
      if (i + 1 == width) continue;
      at(g + (i + 1) * kRow + c) += factor * (of_n.second - mean[r] - normed.second * along[r]);
    }
  }
}

// The windows of a tile: for each its trajectory and its place among the windows of the call.
struct MlpRow {
  int64_t b, n;
};
SDA_FAST_FN MlpRow mlp_row(const MlpScore& m, int64_t row) {
  return {row / m.chunk, m.first + row % m.chunk};
}

// Gathers windows [row, row + rows) feature by feature: rows of the trajectory times `weight`.
template <int R>
inline void gather_tile(const MlpScore& m, const float* source, const int8_t* weight, int64_t row,
                        int64_t rows, float* in) {
  constexpr int64_t kRow = R * kLanes;
  const int64_t inputs = m.window * m.features;
  for (int64_t i = 0; i < inputs * kRow; ++i) in[i] = 0.0f;
  for (int64_t r = 0; r < rows; ++r) {
    const MlpRow place = mlp_row(m, row + r);
    const float* states = source + (place.b * m.length + m.start[place.n]) * m.features;
    for (int64_t j = 0; j < m.window; ++j) {
      const int8_t sign = weight[place.n * m.window + j];
      if (sign == 0) continue;
      for (int64_t c = 0; c < m.features; ++c) {
        const float value = states[j * m.features + c];
        in[(j * m.features + c) * kRow + r] = sign > 0 ? value : -value;
      }
    }
  }
}

// What the layers of a tile work in. `kept`, unless it is null, has for every block what the way
// back needs: factors of n and of act'(W1 n + b1), padded, and scale.
struct MlpScratch {
  float *x, *n, *a, *scale, *kept;

  SDA_FAST_FN void swap_x_and_n() {
    float* const old = x;
    x = n;
    n = old;
  }
};

inline int64_t mlp_widest(const MlpScore& m) {
  int64_t widest = mlp_padded(m.window * (m.features + (m.length_aware ? 1 : 0)));
  for (int64_t d = 0; d < m.depth; ++d) {
    if (m.widths[d] > widest) widest = m.widths[d];
  }
  return mlp_padded(widest);
}

// Floats that are kept of a window: of a block of a width, and of all of them.
inline int64_t mlp_kept(int64_t width, bool bfloat16) {
  return 2 * mlp_padded(width) / (bfloat16 ? 2 : 1) + 1;
}
inline int64_t mlp_kept(const MlpScore& m) {
  int64_t size = 0;
  for (int64_t d = 0; d < m.depth; ++d) size += mlp_kept(m.widths[d], m.bfloat16);
  return size;
}

// Floats of scratch for a thread.
inline int64_t mlp_scratch(const MlpScore& m, bool vjp) {
  return (3 * mlp_widest(m) + 1 + (vjp ? mlp_kept(m) : 0)) * kMlpTile;
}

inline int64_t mlp_tiles(const MlpScore& m) {
  return (m.batch * m.chunk + kMlpTile - 1) / kMlpTile;
}

// The layers, whose result is in s.x. The way back does not need it: the last product is left out.
template <int R, typename P>
inline void mlp_layers(const MlpScore& m, int64_t row, int64_t rows, MlpScratch& s, bool way_back) {
  constexpr int64_t kRow = R * kLanes;
  const float* w = m.weights;

  // the first map, from s.n to s.x
  int64_t inputs = m.window * m.features;
  gather_tile<R>(m, m.x, m.mask, row, rows, s.n);
  if (m.length_aware) {
    for (int64_t j = 0; j < m.window; ++j) {
      for (int64_t r = 0; r < kRow; ++r) {
        const bool state = r < rows && m.mask[mlp_row(m, row + r).n * m.window + j] != 0;
        s.n[(inputs + j) * kRow + r] = state ? 1.0f : 0.0f;
      }
    }
    inputs += m.window;
  }
  const float* in = factors<P>(s.n, inputs, kRow, s.a);
  int64_t width = m.widths[0], padded = mlp_padded(width);
  if (m.bias_stride == 0) {
    product<R, P>(in, inputs, w, m.bias, padded, false, s.x);
  } else {
    for (int64_t i = 0; i < padded; ++i) {
      for (int64_t r = 0; r < kRow; ++r) {
        const int64_t b = r < rows ? mlp_row(m, row + r).b : 0;
        s.x[i * kRow + r] = m.bias[b * m.bias_stride + i];
      }
    }
    product<R, P>(in, inputs, w, nullptr, padded, true, s.x);
  }
  w += padded * P::steps(inputs);

  float* kept = s.kept;
  for (int64_t d = 0; d < m.depth; ++d) {
    if (m.widths[d] != width) {
      inputs = width;
      width = m.widths[d];
      padded = mlp_padded(width);
      in = factors<P>(s.x, inputs, kRow, s.a);
      product<R, P>(in, inputs, w, w + padded * P::steps(inputs), padded, false, s.n);
      s.swap_x_and_n();
      w += padded * (P::steps(inputs) + 1);
    }

    const int64_t factors_size = P::steps(padded) * kRow;
    float* const n = kept != nullptr ? kept : s.n;
    float* const derivative = kept != nullptr ? kept + factors_size : nullptr;
    normalise<R, P>(s.x, width, n, kept != nullptr ? derivative + factors_size : s.scale);

    const auto activated = [&](int64_t o) {
      with_activation(m.activation, [&](auto chosen) {
        replace<R, P>(s.a, o, [&](Pair a, int64_t i, int64_t c) -> Pair {
          const auto first = activate<float>(chosen.kValue, a.first);
          const auto second = activate<float>(chosen.kValue, a.second);
          if (derivative != nullptr) {
            P::store(derivative + c, i, kRow, {first.derivative, second.derivative});
          }
          return {first.value, second.value};
        });
      });
    };
    product<R, P>(n, width, w, w + padded * P::steps(width), padded, false, s.a, activated);
    w += padded * (P::steps(width) + 1);
    if (way_back && d == m.depth - 1) return;
    product<R, P>(s.a, width, w, w + padded * P::steps(width), padded, true, s.x);
    w += padded * (P::steps(width) + 1);
    if (kept != nullptr) kept += mlp_kept(width, P::kPacked) * kRow;
  }
}

// The cotangent of a tile's windows, in s.x, from the composition's and what was kept.
template <int R, typename P>
inline void mlp_layers_vjp(const MlpScore& m, int64_t row, int64_t rows, MlpScratch& s) {
  constexpr int64_t kRow = R * kLanes, kGroup = kFeatures * kRow / (P::kPacked ? 2 : 1);

  const int64_t features = m.window * m.features;
  for (int64_t i = features * kRow; i < mlp_padded(features) * kRow; ++i) s.x[i] = 0.0f;
  gather_tile<R>(m, m.cotangent, m.weight, row, rows, s.x);

  const float* w = m.transposed;  // in the order of the way back
  const float* kept = s.kept + mlp_kept(m) * kRow;
  for (int64_t d = m.depth - 1; d >= 0; --d) {
    const int64_t width = m.widths[d], padded = mlp_padded(width);
    kept -= mlp_kept(width, P::kPacked) * kRow;

    const float* const derivative = kept + P::steps(padded) * kRow;
    const auto scaled = [&](int64_t o) {
      replace<R, P>(s.a, o, [&](Pair a, int64_t i, int64_t c) -> Pair {
        const Pair by = P::load(derivative + c, i, kRow);
        return {a.first * by.first, a.second * by.second};
      });
      prefetch(derivative + P::steps(o + kFeatures) * kRow, kGroup);
    };
    const auto soon = [&](int64_t o) { prefetch(kept + P::steps(o) * kRow, kGroup); };
    prefetch(derivative, kGroup);
    const float* in = factors<P>(s.x, width, kRow, s.n);
    product<R, P>(in, width, w, nullptr, padded, false, s.a, scaled);
    w += padded * P::steps(width);
    product<R, P>(s.a, width, w, nullptr, padded, false, s.n, soon);
    w += padded * P::steps(width);
    normalise_vjp<R, P>(s.n, kept, derivative + P::steps(padded) * kRow, width, s.x);

    const int64_t before = d > 0 ? m.widths[d - 1] : features;
    if (d == 0 || before != width) {
      in = factors<P>(s.x, width, kRow, s.a);
      product<R, P>(in, width, w, nullptr, mlp_padded(before), false, s.n);
      s.swap_x_and_n();
      w += mlp_padded(before) * P::steps(width);
    }
  }
}

template <int R, typename P>
inline void mlp_tile(const MlpScore& m, int64_t row, int64_t rows, MlpScratch s, bool vjp,
                     bool kept) {
  constexpr int64_t kRow = R * kLanes;
  const int64_t features = m.window * m.features;
  if (!vjp || !kept) mlp_layers<R, P>(m, row, rows, s, vjp);
  if (vjp) mlp_layers_vjp<R, P>(m, row, rows, s);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < features; ++i) {
      m.out[(row + r) * features + i] = s.x[i * kRow + r];
    }
  }
}

template <typename P>
inline void mlp_run_as(const MlpScore& m, bool vjp, float* scratch, int64_t begin, int64_t end) {
  const int64_t wide = mlp_widest(m) * kMlpTile;
  const int64_t total = m.batch * m.chunk;
  float* const own = vjp ? scratch + 3 * wide + kMlpTile : nullptr;

  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t row = tile * kMlpTile;
    const int64_t rows = total - row < kMlpTile ? total - row : kMlpTile;
    const bool kept = row + kMlpTile <= m.kept_rows;
    const MlpScratch s = {scratch, scratch + wide, scratch + 2 * wide, scratch + 3 * wide,
                          kept ? m.kept + row * mlp_kept(m) : own};
    if (rows <= kLanes) {
      mlp_tile<1, P>(m, row, rows, s, vjp, kept);
    } else {
      mlp_tile<kWide, P>(m, row, rows, s, vjp, kept);
    }
  }
}

#if defined(__AVX512BF16__)
constexpr bool kBfloat16 = true;
#else
constexpr bool kBfloat16 = false;
#endif

// Tiles [begin, end) of the call's windows.
inline void mlp_run(const MlpScore& m, bool vjp, float* scratch, int64_t begin, int64_t end) {
#if defined(__AVX512BF16__)
  if (m.bfloat16) return mlp_run_as<Bfloat16>(m, vjp, scratch, begin, end);
#endif
  mlp_run_as<Float32>(m, vjp, scratch, begin, end);
}

}  // namespace sda_fast::SDA_FAST_VARIANT

#endif
