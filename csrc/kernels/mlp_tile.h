#pragma once

// The residual MLP of mlp_score.h on a GPU: a thread block takes a tile of windows through all
// layers, in shared memory. There are two buffers, both of a row a window: `x` in float32, the sum
// that blocks add to, and on the way back the cotangent; and `in`, the factors of the next product
// (matrix.h). A product's sums are in registers until everybody has read `in`, and then take its
// place. Warps share out the features, so that each weight is loaded once a tile, from L2 straight
// to registers, and one row's results do not depend on which other rows there are, or how many.
//
// Widths are padded with zeros to kMatrixPad. Weights are packed in the order of mlp_score.h, tiles
// as in matrix.h, biases padded.
//
// For the way back a row keeps, in global memory, for each block n and act'(W1 n + b1), padded, and
// behind those of all blocks their scales, padded.
//
// What it costs: with W the sum over layers of inputs times outputs, 2 W operations a window
// forward and 2 W more for the product with the Jacobian; 4 w D bytes a window of states in and
// estimates out; and of weights (2 or 4 W bytes) all of them once a tile, from L2. With five blocks
// of 256 and 15 features W is 0.67 M, so that a tile of 64 windows reads 1.34 MB of bfloat16 for
// 86 MFLOP, 64 operations a byte: at a third of an H200's 788 TFLOP/s that is 4.1 TB/s, most of
// what its L2 gives. What is kept is 10.6 kB a window, written and read once: 0.3 ms for 1024
// trajectories of 61 windows at 4.3 TB/s, beside 0.32 ms of products each way at a third of the
// peak.
//
// Not measured so far. Expected in bfloat16 at width 256, with mma.sync at some 60 % of wgmma's
// rate, by counting instructions: of the 14,000 cycles that a residual block takes a tile, 6,700 in
// products and 1,000 waiting for their first weights, 2,700 in activations, 2,100 in norms, the
// rest in moving sums, one after the other: under a third of the matrix peak. In float32: 85 % of a
// product's instructions are multiply-adds, so two thirds of their peak. To try first: two thread
// blocks a processor (half the registers each), one's products hiding the other's activations;
// asking for a product's first weights before the barrier; tiles of 96 or 128, for which registers
// are few; keeping n and act' in bfloat16; wgmma, one group of warps a phase ahead of another.

#include "compose.h"
#include "matrix.h"
#include "mlp_score.h"

#ifdef SDA_FAST_GPU

namespace sda_fast::SDA_FAST_VARIANT {

constexpr int kMostDepth = 512;  // residual blocks, of which the launch carries the widths

// What a launch adds to the arguments, whose `widths` are the host's.
struct MlpTile {
  int depth, features, window, inputs;  // inputs: of the first map, the mask included
  int kept_numbers;                     // of a row
  int x_stride, in_bytes;               // between the rows of the two buffers
  bool vjp;
  float* scratch;  // (thread blocks, rows, kept_numbers): for tiles of which nothing was kept
  int16_t widths[kMostDepth];
};

__host__ __device__ constexpr int mlp_pad(int width) {
  return (width + kMatrixPad - 1) / kMatrixPad * kMatrixPad;
}

// Of a tile, in shared memory beside the buffers.
struct MlpRow {
  int64_t b, n, start;  // its trajectory, its place in the plan, and its first state
};
struct MlpStats {
  float mean, along;
};
inline size_t mlp_shared_bytes(const MlpTile& t, int rows) {
  return rows * (sizeof(MlpRow) + (kWarps + 1) * sizeof(MlpStats) + t.x_stride * sizeof(float) +
                 t.in_bytes);
}

// A linear map of the network or of its way back, and what is done before and after it.
enum class MlpLayerKind {
  kFirst,     // x = W windows + bias, which may be each sample's
  kChange,    // x = W x + b
  kInner,     // in = act(W1 n + b1), n = x normalised
  kOuter,     // x += W2 in + b2
  kOuterVjp,  // in = act'(a) W2^T x
  kInnerVjp,  // x += the cotangent of what was normalised, from W1^T in
  kChangeVjp  // x = W^T x
};

struct MlpLayer {
  MlpLayerKind kind;
  int block, inputs, outputs;
  const float* weights;
  int kept;  // where in a row the block's n is, and `outputs` behind it act'(a)
};

// The layers in their order. They are the same for all threads.
template <typename P>
struct MlpLayers {
  const MlpScore& m;
  const MlpTile& t;

  __device__ __forceinline__ static int matrix(const MlpLayer& l) {
    return l.inputs * l.outputs * P::kBytes / 4;
  }

  __device__ __forceinline__ MlpLayer first() const {
    return {MlpLayerKind::kFirst, 0, mlp_pad(t.inputs), mlp_pad(t.widths[0]), m.weights, 0};
  }

  // Goes on to the next layer, if there is one. The way back needs no more than the last block's
  // act'(a).
  __device__ __forceinline__ bool next(MlpLayer& l) const {
    l.weights += matrix(l) + (l.kind == MlpLayerKind::kFirst ? 0 : l.outputs);
    if (l.kind == MlpLayerKind::kInner) {
      l.kind = MlpLayerKind::kOuter;
      return !(t.vjp && l.block == t.depth - 1);
    }
    l.inputs = l.outputs;
    if (l.kind == MlpLayerKind::kOuter) {
      if (++l.block == t.depth) return false;
      l.kept += 2 * l.outputs;
      l.outputs = mlp_pad(t.widths[l.block]);
      if (t.widths[l.block] != t.widths[l.block - 1]) {
        l.kind = MlpLayerKind::kChange;
        return true;
      }
    }
    l.kind = MlpLayerKind::kInner;
    return true;
  }

  __device__ __forceinline__ MlpLayer last() const {
    int kept = 0;
    for (int d = 0; d < t.depth - 1; ++d) kept += 2 * mlp_pad(t.widths[d]);
    const int width = mlp_pad(t.widths[t.depth - 1]);
    return {MlpLayerKind::kOuterVjp, t.depth - 1, width, width, m.transposed, kept};
  }

  __device__ __forceinline__ bool back(MlpLayer& l) const {
    l.weights += matrix(l);
    if (l.kind == MlpLayerKind::kOuterVjp) {
      l.kind = MlpLayerKind::kInnerVjp;
      return true;
    }
    const bool begins = l.block == 0 || t.widths[l.block - 1] != t.widths[l.block];
    if (l.kind == MlpLayerKind::kInnerVjp && begins) {
      l.kind = MlpLayerKind::kChangeVjp;
      l.outputs = mlp_pad(l.block == 0 ? t.window * t.features : t.widths[l.block - 1]);
      return true;
    }
    if (l.block-- == 0) return false;
    l.kind = MlpLayerKind::kOuterVjp;
    l.inputs = l.outputs;
    l.kept -= 2 * l.outputs;
    return true;
  }
};

// A tile of 8 kRows windows, and layers of up to 16 kTiles kWarps features.
template <typename P, int kTiles, int kRows>
struct MlpBlock {
  static constexpr int kWindows = kTileWindows * kRows;
  static constexpr int kTogether = kRows < 4 ? 2 : 8;  // pairs of sums that are worked on at once
  static_assert(2 * kRows % kTogether == 0);

  const MlpScore& m;
  const MlpTile& t;
  MlpRow* place;
  MlpStats* stats;    // (kWindows)
  MlpStats* partial;  // (kWarps, kWindows)
  float* x;
  char* in;
  float* kept;  // of the tile's rows, or null
  int rows;     // that are windows; the others are zero

  __device__ __forceinline__ MlpBlock(const MlpScore& m, const MlpTile& t) : m(m), t(t) {
    place = dynamic_shared<MlpRow>();  // first what lies at constant places, to save registers
    stats = reinterpret_cast<MlpStats*>(place + kWindows);
    partial = stats + kWindows;
    in = reinterpret_cast<char*>(partial + kWarps * kWindows);
    x = reinterpret_cast<float*>(in + kWindows * t.in_bytes);
  }

  // A number that is not known to be what it was before: what is asked for twice is then computed
  // twice. Held in between, the places of all rows take too many registers.
  __device__ __forceinline__ static int anew(int number) {
#ifndef SDA_FAST_EMULATE
    asm volatile("" : "+r"(number));
#endif
    return number;
  }

  // Rows of a tile keep fewer than 2^31 numbers.
  __device__ __forceinline__ float* kept_row(int row) const {
    return kept + static_cast<uint32_t>(row * anew(t.kept_numbers));
  }
  __device__ __forceinline__ float& kept_scale(int row, int block) const {
    return kept_row(row)[t.kept_numbers - mlp_pad(t.depth) + block];
  }
  // Of a row that is no window, what the last window has: it is not looked at, and without a branch
  // a thread asks for all its rows before it needs the first.
  __device__ __forceinline__ int kept_at(int row) const { return row < rows ? row : rows - 1; }
  __device__ __forceinline__ float2 kept_pair(int row, int number) const {
    return *reinterpret_cast<const float2*>(kept_row(kept_at(row)) + number);
  }
  __device__ __forceinline__ float2& pair(int row, int i) const {
    return *reinterpret_cast<float2*>(x + row * t.x_stride + i);
  }
  __device__ __forceinline__ void store(int row, int i, float a, float b) const {
    P::store(in + row * t.in_bytes, swizzle(row), i, a, b);
  }

  // Number i of a window: of its states times `sign`, or of its mask behind them. As in `gather`, a
  // state outside the trajectory is NaN.
  __device__ __forceinline__ float gathered(const float* source, const int8_t* sign, int row,
                                            int i) const {
    const int states = t.window * t.features;
    if (row >= rows || i >= t.inputs) return 0.0f;
    const MlpRow p = place[row];
    if (i >= states) return sign[p.n * t.window + i - states] != 0 ? 1.0f : 0.0f;
    const int j = i / t.features;
    const int8_t weight = sign[p.n * t.window + j];
    if (weight == 0) return 0.0f;
    const int64_t state = p.start + j;
    const bool inside = state >= 0 && state < m.length;
    const float value = inside ? source[(p.b * m.length + state) * t.features + i - j * t.features]
                               : __uint_as_float(0x7FC00000u);
    return weight > 0 ? value : -value;
  }

  // Calls f(row, i) for pairs of numbers i, i + 1 of all rows, side by side in a warp.
  template <typename F>
  __device__ __forceinline__ void each_pair(int width, const F& f) const {
    const int thread = anew(threadIdx.x);
    for (int row = thread / 32; row < kWindows; row += kWarps) {
      for (int i = thread % 32 * 2; i < width; i += 64) f(row, i);
    }
  }

  // n = (x - mean) scale, scale = 1 / sqrt(variance + 1e-5), a warp a row, but several rows side by
  // side: one after the other, each would wait for its own sums.
  __device__ __forceinline__ void normalise(const MlpLayer& l) const {
    constexpr int kPairs = 2 * kTiles, kSide = kRows < 4 ? kRows : 4;
    static_assert(kWindows % (kSide * kWarps) == 0);
    const int thread = anew(threadIdx.x), lane = thread % 32, width = t.widths[l.block];
    const float share = 1.0f / static_cast<float>(width);
    const float share_of_free = 1.0f / static_cast<float>(width - 1);
    const auto whole = [](float (&sums)[kSide]) {
#pragma unroll
      for (int lanes = 1; lanes < 32; lanes *= 2) {
#pragma unroll
        for (float& sum : sums) sum += __shfl_xor_sync(~0u, sum, lanes);
      }
    };

#pragma unroll 1
    for (int first = thread / 32; first < kWindows; first += kSide * kWarps) {
      const auto each = [&](const auto& f) {
#pragma unroll
        for (int p = 0; p < kPairs; ++p) {
          const int i = (p * 32 + lane) * 2;
          if (i >= l.inputs) break;
#pragma unroll
          for (int r = 0; r < kSide; ++r) f(r, p, first + r * kWarps, i);
        }
      };

      float2 v[kSide][kPairs];
      float mean[kSide] = {}, square[kSide] = {}, scale[kSide];
      each([&](int r, int p, int row, int i) {
        v[r][p] = pair(row, i);
        mean[r] += (i < width ? v[r][p].x : 0.0f) + (i + 1 < width ? v[r][p].y : 0.0f);
      });
      whole(mean);
#pragma unroll
      for (float& m : mean) m *= share;
      each([&](int r, int p, int, int i) {
        float2& d = v[r][p];
        d = {i < width ? d.x - mean[r] : 0.0f, i + 1 < width ? d.y - mean[r] : 0.0f};
        square[r] = multiply_add(d.x, d.x, multiply_add(d.y, d.y, square[r]));
      });
      whole(square);
#pragma unroll
      for (int r = 0; r < kSide; ++r) {
        scale[r] = inverse_square_root(square[r] * share_of_free + 1e-5f);
      }
      each([&](int r, int p, int row, int i) {
        const float2 n = {v[r][p].x * scale[r], v[r][p].y * scale[r]};
        store(row, i, n.x, n.y);
        if (kept == nullptr || row >= rows) return;
        *reinterpret_cast<float2*>(kept_row(row) + l.kept + i) = n;
      });
      if (kept == nullptr || lane != 0) continue;
#pragma unroll
      for (int r = 0; r < kSide; ++r) {
        const int row = first + r * kWarps;
        if (row < rows) kept_scale(row, l.block) = scale[r];
      }
    }
  }

  // Fills `in` for a layer.
  __device__ __forceinline__ void prepare(const MlpLayer& l) const {
    switch (l.kind) {
      case MlpLayerKind::kFirst:
        each_pair(l.inputs, [&](int row, int i) {
          store(row, i, gathered(m.x, m.mask, row, i), gathered(m.x, m.mask, row, i + 1));
        });
        break;
      case MlpLayerKind::kInner:
        normalise(l);
        break;
      case MlpLayerKind::kOuterVjp:
        if (l.block == t.depth - 1) {
          const int states = t.window * t.features;
          const auto number = [&](int row, int i) {
            return i < states ? gathered(m.cotangent, m.weight, row, i) : 0.0f;
          };
          each_pair(l.inputs,
                    [&](int row, int i) { pair(row, i) = {number(row, i), number(row, i + 1)}; });
        }
        [[fallthrough]];  // a thread takes the pairs that it has written
      case MlpLayerKind::kChange:
      case MlpLayerKind::kChangeVjp:
        each_pair(l.inputs, [&](int row, int i) {
          const float2 v = pair(row, i);
          store(row, i, v.x, v.y);
        });
        break;
      default:
        break;  // the layer before has
    }
  }

  // A pair of the sums that a thread has: its tile of kTiles and its slot of 2 kRows, the row and
  // the first feature.
  struct Place {
    int tile, slot, row, i;
  };

  __device__ __forceinline__ static int row_of(int thread, int slot) {
    return slot / 2 * kTileWindows + thread % 4 * 2 + slot % 2;
  }

  // Calls f(place, a, b) for each of them, tile by tile: what is done for the slots of a tile is
  // done side by side, so that none waits alone for what it loads or computes.
  template <typename F>
  __device__ __forceinline__ static void each_sum(float (&sums)[kTiles][kRows][4], int outputs,
                                                  const F& f) {
    const int thread = anew(threadIdx.x);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const int i = (thread / 32 + tile * kWarps) * kTileFeatures + thread % 32 / 4 * 2;
      if (i >= outputs) break;
#pragma unroll
      for (int slot = 0; slot < 2 * kRows; ++slot) {
        f(Place{tile, slot, row_of(thread, slot), i}, sums[tile][slot / 2][slot % 2],
          sums[tile][slot / 2][2 + slot % 2]);
      }
    }
  }

  __device__ __forceinline__ void store_sums(float (&sums)[kTiles][kRows][4], int outputs) const {
    __syncthreads();  // everybody has read `in`
    each_sum(sums, outputs, [&](Place at, float a, float b) { store(at.row, at.i, a, b); });
  }

  // x += scale (gn - mean gn - n sum(gn n) / (width - 1)) for the cotangent gn of n.
  __device__ __forceinline__ void finish_inner_vjp(const MlpLayer& l,
                                                   float (&sums)[kTiles][kRows][4]) const {
#pragma unroll
    for (int first = 0; first < 2 * kRows; first += kTogether) {
      MlpStats sum[kTogether] = {};
      each_sum(sums, l.outputs, [&](Place at, float a, float b) {
        if (at.slot / kTogether * kTogether != first) return;
        const float2 v = kept_pair(at.row, l.kept + at.i);
        MlpStats& s = sum[at.slot - first];
        s.mean += a + b;
        s.along = multiply_add(a, v.x, multiply_add(b, v.y, s.along));
      });
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) {
#pragma unroll
        for (MlpStats& s : sum) {
          s.mean += __shfl_xor_sync(~0u, s.mean, lanes);
          s.along += __shfl_xor_sync(~0u, s.along, lanes);
        }
      }
      if (threadIdx.x % 32 >= 4) continue;
#pragma unroll
      for (int slot = 0; slot < kTogether; ++slot) {
        partial[threadIdx.x / 32 * kWindows + row_of(threadIdx.x, first + slot)] = sum[slot];
      }
    }
    __syncthreads();
    const int width = t.widths[l.block];
    for (int row = threadIdx.x; row < kWindows; row += kThreads) {
      MlpStats whole = {};
      for (int w = 0; w < kWarps; ++w) {
        whole.mean += partial[w * kWindows + row].mean;
        whole.along += partial[w * kWindows + row].along;
      }
      stats[row] = {whole.mean / static_cast<float>(width),
                    whole.along / static_cast<float>(width - 1)};
    }
    __syncthreads();

    each_sum(sums, l.outputs, [&](Place at, float a, float b) {
      const float2 v = kept_pair(at.row, l.kept + at.i);
      const MlpStats s = stats[at.row];
      const float scale = kept_scale(kept_at(at.row), l.block);
      float2& to = pair(at.row, at.i);
      to = {multiply_add(scale, a - s.mean - v.x * s.along, to.x),
            multiply_add(scale, b - s.mean - v.y * s.along, to.y)};
    });
  }

  // x = W in + b, added to x if `add`; the first map's bias is given apart.
  __device__ __forceinline__ void finish_outer(const MlpLayer& l, float (&sums)[kTiles][kRows][4],
                                               bool add) const {
    const bool first = l.kind == MlpLayerKind::kFirst, has = l.kind != MlpLayerKind::kChangeVjp;
    const float* bias = first ? m.bias : l.weights + MlpLayers<P>::matrix(l);
    const int64_t stride = first ? m.bias_stride : 0;
    each_sum(sums, l.outputs, [&](Place at, float a, float b) {
      float2& to = pair(at.row, at.i);
      if (has) {
        const float* from = bias + place[at.row].b * stride + at.i;
        const float2 v = __ldg(reinterpret_cast<const float2*>(from));
        a += v.x;
        b += v.y;
      }
      to = add ? float2{to.x + a, to.y + b} : float2{a, b};
    });
  }

  // in = act(a), a = W1 n + b1; the derivative is kept.
  __device__ __forceinline__ void finish_inner(const MlpLayer& l,
                                               float (&sums)[kTiles][kRows][4]) const {
    const float* bias = l.weights + MlpLayers<P>::matrix(l);
    with_activation(m.activation, [&](auto chosen) {
      constexpr Activation kActivation = decltype(chosen)::kValue;
      each_sum(sums, l.outputs, [&](Place at, float& a, float& b) {
        const float2 v = __ldg(reinterpret_cast<const float2*>(bias + at.i));
        const auto first = activate<float>(kActivation, a + v.x);
        const auto second = activate<float>(kActivation, b + v.y);
        a = first.value;
        b = second.value;
        if (kept != nullptr && at.row < rows) {
          float* to = kept_row(at.row) + l.kept + l.outputs + at.i;
          *reinterpret_cast<float2*>(to) = {first.derivative, second.derivative};
        }
      });
    });
    store_sums(sums, l.outputs);
  }

  // in = act'(a) W2^T x.
  __device__ __forceinline__ void finish_outer_vjp(const MlpLayer& l,
                                                   float (&sums)[kTiles][kRows][4]) const {
    each_sum(sums, l.outputs, [&](Place at, float& a, float& b) {
      const float2 derivative = kept_pair(at.row, l.kept + l.outputs + at.i);
      a *= derivative.x;
      b *= derivative.y;
    });
    store_sums(sums, l.outputs);
  }

  // Takes the sums of a layer to where they belong.
  __device__ __forceinline__ void finish(const MlpLayer& l, float (&sums)[kTiles][kRows][4]) const {
    switch (l.kind) {
      case MlpLayerKind::kInner:
        return finish_inner(l, sums);
      case MlpLayerKind::kOuterVjp:
        return finish_outer_vjp(l, sums);
      case MlpLayerKind::kInnerVjp:
        return finish_inner_vjp(l, sums);
      default:
        return finish_outer(l, sums, l.kind == MlpLayerKind::kOuter);
    }
  }

  // Finds the tile's windows, from number `first` of the call on.
  __device__ __forceinline__ void begin(int64_t first) {
    const int64_t left = m.batch * m.chunk - first;
    rows = left < kWindows ? static_cast<int>(left) : kWindows;
    for (int row = threadIdx.x; row < kWindows; row += kThreads) {
      const int64_t window = row < rows ? first + row : first;
      const int64_t b = window / m.chunk, n = m.first + window % m.chunk;
      place[row] = {b, n, m.start[n]};
    }
  }

  // The rows of the tile's windows that the composition adds up; it reads no others.
  __device__ __forceinline__ void write(int64_t first) const {
    const int columns = t.window * t.features;
    const int8_t* sign = t.vjp ? m.mask : m.weight;
    for (int e = threadIdx.x; e < rows * columns; e += kThreads) {
      const int row = e / columns, i = e - row * columns;
      if (sign[place[row].n * t.window + i / t.features] == 0) continue;
      m.out[first * columns + e] = x[row * t.x_stride + i];
    }
  }
};

// A thread block a tile, and then another one.
template <typename P, int kTiles, int kRows, int kAhead>
__global__ void __launch_bounds__(kThreads, 1)
    mlp_score_kernel(const __grid_constant__ MlpScore m, const __grid_constant__ MlpTile t) {
  MlpBlock<P, kTiles, kRows> block(m, t);
  const MlpLayers<P> layers = {m, t};
  constexpr int64_t kWindows = MlpBlock<P, kTiles, kRows>::kWindows;
  const int64_t total = m.batch * m.chunk;

  for (int64_t first = blockIdx.x * kWindows; first < total; first += gridDim.x * kWindows) {
    block.begin(first);
    const bool keeps = first + block.rows <= m.kept_rows;
    block.kept = keeps   ? m.kept + first * t.kept_numbers
                 : t.vjp ? t.scratch + blockIdx.x * kWindows * t.kept_numbers
                         : nullptr;
    __syncthreads();

    bool back = t.vjp && keeps;
    MlpLayer l = back ? layers.last() : layers.first();
    while (true) {
      block.prepare(l);
      __syncthreads();
      float sums[kTiles][kRows][4];
      product<P, kTiles, kRows, kAhead>(block.in, t.in_bytes, l.inputs, l.weights,
                                        l.outputs / kTileFeatures, sums);
      block.finish(l, sums);
      __syncthreads();

      if (back ? layers.back(l) : layers.next(l)) continue;
      if (back || !t.vjp) break;
      back = true;
      l = layers.last();
    }

    block.write(first);
    __syncthreads();
  }
}

}  // namespace sda_fast::SDA_FAST_VARIANT

#endif
