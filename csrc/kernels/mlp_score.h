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

// The factors of products, and how they are multiplied: `steps` vectors of an input each.
struct Float32 {
  static SDA_FAST_FN int64_t steps(int64_t inputs) { return inputs; }
  static SDA_FAST_FN const float* factors(const float* in, int64_t, int64_t, float*) { return in; }
  static SDA_FAST_FN Vector add(Vector sum, Vector value, float factor) {
    return sum + value * splat(factor);
  }
};

#if defined(__AVX512BF16__)
struct Bfloat16 {
  static SDA_FAST_FN int64_t steps(int64_t inputs) { return (inputs + 1) / 2; }

  // To the nearest, ties to even, in the upper half.
  static SDA_FAST_FN Ints rounded(const float* p) {
    const Ints bits = reinterpret_cast<const Ints&>(at(p));
    return bits + 0x7FFF + ((bits >> 16) & 1);
  }

  // Pairs the inputs (inputs, row) up into `pairs`.
  static inline const float* factors(const float* in, int64_t inputs, int64_t row, float* pairs) {
    for (int64_t i = 0; i < inputs; i += 2) {
      for (int64_t r = 0; r < row; r += kLanes) {
        const Ints first = (rounded(in + i * row + r) >> 16) & 0xFFFF;
        const Ints second = i + 1 < inputs
                                ? rounded(in + (i + 1) * row + r) & static_cast<int>(0xFFFF0000)
                                : Ints{};
        reinterpret_cast<Ints&>(at(pairs + i / 2 * row + r)) = first | second;
      }
    }
    return pairs;
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

// out = W in + b (+ out if `add`) for a tile of R vectors of windows: in (inputs, R), out (outputs,
// R). Without b it starts from zero. `pairs` is scratch of the size of `in`.
template <int R, typename P>
inline void product(const float* in, int64_t inputs, const float* w, const float* b,
                    int64_t outputs, bool add, float* out, float* pairs) {
  constexpr int64_t kRow = R * kLanes;
  const int64_t steps = P::steps(inputs);
  const float* values = P::factors(in, inputs, kRow, pairs);
  for (int64_t o = 0; o < outputs; o += kFeatures) {
    const float* panel = w + o / kPanel * kPanel * steps + o % kPanel;
    Vector sum[kFeatures][R];
    for (int f = 0; f < kFeatures; ++f) {
      for (int r = 0; r < R; ++r) sum[f][r] = splat(b != nullptr ? b[o + f] : 0.0f);
    }
    for (int64_t i = 0; i < steps; ++i) {
      Vector value[R];
      for (int r = 0; r < R; ++r) value[r] = at(values + i * kRow + r * kLanes);
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
  }
}

// n = (x - mean) * scale, scale = 1 / sqrt(variance + 1e-5), over the features.
template <int R>
inline void normalise(const float* x, int64_t width, float* n, float* scale) {
  constexpr int64_t kRow = R * kLanes;
  for (int r = 0; r < R; ++r) {
    const float* column = x + r * kLanes;
    Vector mean = splat(0.0f), square = splat(0.0f);
    for (int64_t i = 0; i < width; ++i) mean += at(column + i * kRow);
    mean *= 1.0f / static_cast<float>(width);
    for (int64_t i = 0; i < width; ++i) {
      const Vector d = at(column + i * kRow) - mean;
      square += d * d;
    }
    const Vector factor = inverse_square_root(square / static_cast<float>(width - 1) + 1e-5f);
    for (int64_t i = 0; i < width; ++i) {
      at(n + i * kRow + r * kLanes) = (at(column + i * kRow) - mean) * factor;
    }
    at(scale + r * kLanes) = factor;
  }
}

// g += the cotangent of x, for the cotangent gn of n: scale (gn - mean gn - n sum(gn n) / (w - 1)).
template <int R>
inline void normalise_vjp(const float* gn, const float* n, const float* scale, int64_t width,
                          float* g) {
  constexpr int64_t kRow = R * kLanes;
  for (int r = 0; r < R; ++r) {
    const int64_t c = r * kLanes;
    Vector mean = splat(0.0f), along = splat(0.0f);
    for (int64_t i = 0; i < width; ++i) {
      mean += at(gn + i * kRow + c);
      along += at(gn + i * kRow + c) * at(n + i * kRow + c);
    }
    mean *= 1.0f / static_cast<float>(width);
    along *= 1.0f / static_cast<float>(width - 1);
    const Vector factor = at(scale + c);
    for (int64_t i = 0; i < width; ++i) {
      at(g + i * kRow + c) +=
          factor * (at(gn + i * kRow + c) - mean - at(n + i * kRow + c) * along);
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
// back needs: n and a = W1 n + b1, padded, and scale.
struct MlpScratch {
  float *x, *n, *a, *pairs, *kept;
};

SDA_FAST_FN int64_t mlp_kept(int64_t width) { return 2 * mlp_padded(width) + 1; }

inline int64_t mlp_widest(const MlpScore& m) {
  int64_t widest = mlp_padded(m.window * (m.features + (m.length_aware ? 1 : 0)));
  for (int64_t d = 0; d < m.depth; ++d) {
    if (m.widths[d] > widest) widest = m.widths[d];
  }
  return mlp_padded(widest);
}

// Floats that are kept of a window.
inline int64_t mlp_kept(const MlpScore& m) {
  int64_t size = 0;
  for (int64_t d = 0; d < m.depth; ++d) size += mlp_kept(m.widths[d]);
  return size;
}

// Floats of scratch for a thread.
inline int64_t mlp_scratch(const MlpScore& m, bool vjp) {
  return (4 * mlp_widest(m) + 1 + (vjp ? mlp_kept(m) : 0)) * kMlpTile;
}

inline int64_t mlp_tiles(const MlpScore& m) {
  return (m.batch * m.chunk + kMlpTile - 1) / kMlpTile;
}

// The layers, whose result is in s.x. The way back does not need it: the last product is left out.
template <int R, typename P>
inline void mlp_layers(const MlpScore& m, int64_t row, int64_t rows, const MlpScratch& s,
                       bool way_back) {
  constexpr int64_t kRow = R * kLanes;
  const int64_t wide = mlp_widest(m) * kMlpTile;
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
  int64_t width = m.widths[0], padded = mlp_padded(width);
  if (m.bias_stride == 0) {
    product<R, P>(s.n, inputs, w, m.bias, padded, false, s.x, s.pairs);
  } else {
    for (int64_t i = 0; i < padded; ++i) {
      for (int64_t r = 0; r < kRow; ++r) {
        const int64_t b = r < rows ? mlp_row(m, row + r).b : 0;
        s.x[i * kRow + r] = m.bias[b * m.bias_stride + i];
      }
    }
    product<R, P>(s.n, inputs, w, nullptr, padded, true, s.x, s.pairs);
  }
  w += padded * P::steps(inputs);

  float* kept = s.kept;
  for (int64_t d = 0; d < m.depth; ++d) {
    if (m.widths[d] != width) {
      inputs = width;
      width = m.widths[d];
      padded = mlp_padded(width);
      for (int64_t i = 0; i < inputs * kRow; i += kLanes) at(s.n + i) = at(s.x + i);
      product<R, P>(s.n, inputs, w, w + padded * P::steps(inputs), padded, false, s.x, s.pairs);
      w += padded * (P::steps(inputs) + 1);
    }

    float* n = kept != nullptr ? kept : s.n;
    float* scale = kept != nullptr ? kept + 2 * padded * kRow : s.pairs + wide;
    normalise<R>(s.x, width, n, scale);
    product<R, P>(n, width, w, w + padded * P::steps(width), padded, false, s.a, s.pairs);
    w += padded * (P::steps(width) + 1);
    if (kept != nullptr) {
      float* a = kept + padded * kRow;
      for (int64_t i = 0; i < padded * kRow; i += kLanes) at(a + i) = at(s.a + i);
      kept += mlp_kept(width) * kRow;
    }
    if (way_back && d == m.depth - 1) return;
    for (int64_t i = 0; i < padded * kRow; i += kLanes) {
      const auto after = activate<float>(m.activation, at(s.a + i));
      at(s.a + i) = after.value;
    }
    product<R, P>(s.a, width, w, w + padded * P::steps(width), padded, true, s.x, s.pairs);
    w += padded * (P::steps(width) + 1);
  }
}

// The cotangent of a tile's windows, in s.x, from the composition's and what was kept.
template <int R, typename P>
inline void mlp_layers_vjp(const MlpScore& m, int64_t row, int64_t rows, const MlpScratch& s) {
  constexpr int64_t kRow = R * kLanes;

  const int64_t features = m.window * m.features;
  for (int64_t i = features * kRow; i < mlp_padded(features) * kRow; ++i) s.x[i] = 0.0f;
  gather_tile<R>(m, m.cotangent, m.weight, row, rows, s.x);

  const float* w = m.transposed;  // in the order of the way back
  const float* kept = s.kept + mlp_kept(m) * kRow;
  for (int64_t d = m.depth - 1; d >= 0; --d) {
    const int64_t width = m.widths[d], padded = mlp_padded(width);
    kept -= mlp_kept(width) * kRow;

    product<R, P>(s.x, width, w, nullptr, padded, false, s.a, s.pairs);
    w += padded * P::steps(width);
    for (int64_t i = 0; i < width * kRow; i += kLanes) {
      const Vector before = at(kept + padded * kRow + i);
      const auto after = activate<float>(m.activation, before);
      at(s.a + i) *= after.derivative;
    }
    product<R, P>(s.a, width, w, nullptr, padded, false, s.n, s.pairs);
    w += padded * P::steps(width);
    normalise_vjp<R>(s.n, kept, kept + 2 * padded * kRow, width, s.x);

    const int64_t before = d > 0 ? m.widths[d - 1] : features;
    if (d == 0 || before != width) {
      for (int64_t i = 0; i < width * kRow; i += kLanes) at(s.n + i) = at(s.x + i);
      product<R, P>(s.n, width, w, nullptr, mlp_padded(before), false, s.x, s.pairs);
      w += mlp_padded(before) * P::steps(width);
    }
  }
}

template <int R, typename P>
inline void mlp_tile(const MlpScore& m, int64_t row, int64_t rows, const MlpScratch& s, bool vjp,
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
  float* const own = vjp ? scratch + 4 * wide + kMlpTile : nullptr;

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
