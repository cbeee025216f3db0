#pragma once

// Matrix products of a warp on a GPU, behind one instruction: 16 features of 8 windows are added
// to,
//
//   sums[o][r] += sum over the inputs i of a step of w[o][i] in[r][i]
//
// in float32, of factors in float32, TF32 or bfloat16. Lane 4 g + q holds four of the sums: those
// of features 2 g (v[0], v[1]) and 2 g + 1 (v[2], v[3]), of windows 2 q and 2 q + 1.
//
// Inputs lie in shared memory, a row of factors a window. Rows take a multiple of 128 bytes, and
// the 16-byte pieces of row r change places, piece i to i ^ swizzle(r): neither the loads nor the
// stores of a warp then meet in a bank. Weights lie in global memory in the order in which lanes
// load them, 16 bytes a lane: tile by tile of features, step by step of inputs.
//
// mma.sync sums over its inputs in any order, so a lane takes for its share of a step what lies
// side by side in memory: one load of 16 bytes is two instructions' inputs. The weights are packed
// so.

#include "number.h"

#ifdef SDA_FAST_EMULATE
#include "../emulate/matrix.h"
#endif

namespace sda_fast::SDA_FAST_VARIANT {

#ifdef SDA_FAST_GPU

constexpr int kTileFeatures = 16, kTileWindows = 8, kMatrixPad = 32;

// A lane loads a piece of row g, or stores to features 2 g of row 2 q or 2 q + 1 (of 8): so among
// neighbouring rows the highest bit of three changes, and among those of a store the upper two.
SDA_FAST_FN constexpr int swizzle(int row) { return ((row ^ row >> 2) & 1) << 2 | (row & 2); }

// sums += a b for the fragments of mma.sync's m16n8k16, of pairs of bfloat16.
__device__ __forceinline__ void multiply_bfloat16(float (&sums)[4], uint4 a, uint32_t b0,
                                                  uint32_t b1) {
#ifdef SDA_FAST_EMULATE
  emulate::multiply<2>(sums, {a.x, a.y, a.z, a.w}, {b0, b1});
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
#endif
}

// And of m16n8k8, of TF32.
__device__ __forceinline__ void multiply_tfloat32(float (&sums)[4], uint4 a, uint32_t b0,
                                                  uint32_t b1) {
#ifdef SDA_FAST_EMULATE
  emulate::multiply<1>(sums, {a.x, a.y, a.z, a.w}, {b0, b1});
#else
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
#endif
}

// To 10 bits of fraction, ties away from zero.
__device__ __forceinline__ uint32_t round_tfloat32(float a) {
#ifdef SDA_FAST_EMULATE
  return a != a ? bits_of(a) : (bits_of(a) + 0x1000u) & ~0x1FFFu;
#else
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(a));
  return bits;
#endif
}

// How factors are kept and multiplied. kBytes: of a factor; kStep: the inputs of a step; kVectors:
// the 16-byte vectors of weights of a tile and a step.

struct BFloat16Products {
  static constexpr int kBytes = 2, kStep = 32, kVectors = 64;

  struct Weights {
    uint4 half[2];
  };
  static __device__ __forceinline__ Weights weights(const uint4* step, int lane) {
    return {{__ldg(step + lane), __ldg(step + 32 + lane)}};
  }

  // Of the windows from `rows` on.
  using Inputs = uint4;
  static __device__ __forceinline__ Inputs inputs(const char* rows, int row_bytes, int step,
                                                  int lane) {
    const int row = lane / 4, piece = (4 * step + lane % 4) ^ swizzle(row);
    return *reinterpret_cast<const uint4*>(rows + row * row_bytes + 16 * piece);
  }

  static __device__ __forceinline__ void multiply(float (&sums)[4], const Weights& w,
                                                  const Inputs& in) {
    multiply_bfloat16(sums, w.half[0], in.x, in.y);
    multiply_bfloat16(sums, w.half[1], in.z, in.w);
  }

  // Rounds the inputs i (even) and i + 1 of a row.
  static __device__ __forceinline__ void store(char* row, int swizzled, int i, float a, float b) {
    const uint32_t low = narrow<BFloat16>(a).bits, high = narrow<BFloat16>(b).bits;
    *reinterpret_cast<uint32_t*>(row + 16 * ((i >> 3) ^ swizzled) + 2 * (i & 7)) = high << 16 | low;
  }
};

struct TFloat32Products {
  static constexpr int kBytes = 4, kStep = 16, kVectors = 64;

  using Weights = BFloat16Products::Weights;
  static __device__ __forceinline__ Weights weights(const uint4* step, int lane) {
    return BFloat16Products::weights(step, lane);
  }

  using Inputs = uint4;
  static __device__ __forceinline__ Inputs inputs(const char* rows, int row_bytes, int step,
                                                  int lane) {
    return BFloat16Products::inputs(rows, row_bytes, step, lane);
  }

  static __device__ __forceinline__ void multiply(float (&sums)[4], const Weights& w,
                                                  const Inputs& in) {
    multiply_tfloat32(sums, w.half[0], in.x, in.y);
    multiply_tfloat32(sums, w.half[1], in.z, in.w);
  }

  static __device__ __forceinline__ void store(char* row, int swizzled, int i, float a, float b) {
    uint2 pair = {round_tfloat32(a), round_tfloat32(b)};
    *reinterpret_cast<uint2*>(row + 16 * ((i >> 2) ^ swizzled) + 4 * (i & 3)) = pair;
  }
};

// Without a matrix instruction: each lane multiplies for its own four sums, which read the same
// weights as its neighbours in q, and the same windows as those in g.
struct Float32Products {
  static constexpr int kBytes = 4, kStep = 4, kVectors = 16;

  struct Weights {
    float4 feature[2];
  };
  static __device__ __forceinline__ Weights weights(const uint4* step, int lane) {
    const auto* w = reinterpret_cast<const float4*>(step) + lane / 4;
    return {{__ldg(w), __ldg(w + 8)}};
  }

  struct Inputs {
    float4 window[2];
  };
  static __device__ __forceinline__ Inputs inputs(const char* rows, int row_bytes, int step,
                                                  int lane) {
    const int row = lane % 4 * 2;
    const char* in = rows + row * row_bytes;
    return {{*reinterpret_cast<const float4*>(in + 16 * (step ^ swizzle(row))),
             *reinterpret_cast<const float4*>(in + row_bytes + 16 * (step ^ swizzle(row + 1)))}};
  }

  static __device__ __forceinline__ void multiply(float (&sums)[4], const Weights& w,
                                                  const Inputs& in) {
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      const float4 a = w.feature[s / 2], b = in.window[s % 2];
      sums[s] = multiply_add(a.x, b.x, sums[s]);
      sums[s] = multiply_add(a.y, b.y, sums[s]);
      sums[s] = multiply_add(a.z, b.z, sums[s]);
      sums[s] = multiply_add(a.w, b.w, sums[s]);
    }
  }

  static __device__ __forceinline__ void store(char* row, int swizzled, int i, float a, float b) {
    float2 pair = {a, b};
    *reinterpret_cast<float2*>(row + 16 * ((i >> 2) ^ swizzled) + 4 * (i & 3)) = pair;
  }
};

constexpr int kWarps = kThreads / 32;

// sums += W in for the tiles of features that a warp has: kTiles, or if not kAll as many as there
// are, of all windows, 8 kRows of them. Weights are loaded kAhead steps before they are used.
template <typename P, int kTiles, int kRows, int kAhead, bool kAll>
__device__ __forceinline__ void add_product(const char* in, int row_bytes, int inputs,
                                            const float* weights, int tiles,
                                            float (&sums)[kTiles][kRows][4]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int steps = inputs / P::kStep;
  const uint4* w = reinterpret_cast<const uint4*>(weights) + warp * steps * P::kVectors;
  const auto has = [&](int f) { return kAll || warp + f * kWarps < tiles; };

  typename P::Weights ahead[kAhead][kTiles] = {};
  const auto fetch = [&](typename P::Weights(&to)[kTiles], int step) {
#pragma unroll
    for (int f = 0; f < kTiles; ++f) {
      if (has(f)) to[f] = P::weights(w + (f * kWarps * steps + step) * P::kVectors, lane);
    }
  };

#pragma unroll
  for (int a = 0; a < kAhead; ++a) {
    if (a < steps) fetch(ahead[a], a);
  }
#pragma unroll 1
  for (int step = 0; step < steps; step += kAhead) {
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (step + a >= steps) break;
#pragma unroll
      for (int c = 0; c < kRows; ++c) {
        const auto values = P::inputs(in + c * kTileWindows * row_bytes, row_bytes, step + a, lane);
#pragma unroll
        for (int f = 0; f < kTiles; ++f) {
          if (has(f)) P::multiply(sums[f][c], ahead[a][f], values);
        }
      }
      if (step + a + kAhead < steps) fetch(ahead[a], step + a + kAhead);
    }
  }
}

// Likewise where kTiles is too many for that: weights are loaded as registers allow.
template <typename P, int kTiles>
__device__ __forceinline__ void add_product(const char* in, int row_bytes, int inputs,
                                            const float* weights, int tiles,
                                            float (&sums)[kTiles][1][4]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int steps = inputs / P::kStep;
  const uint4* w = reinterpret_cast<const uint4*>(weights) + warp * steps * P::kVectors;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const auto values = P::inputs(in, row_bytes, step, lane);
    const uint4* tile = w + step * P::kVectors;
#pragma unroll
    for (int f = 0; f < kTiles; ++f, tile += kWarps * steps * P::kVectors) {
      if (warp + f * kWarps >= tiles) break;
      P::multiply(sums[f][0], P::weights(tile, lane), values);
    }
  }
}

// sums = W in for `tiles` tiles of features, shared out to the warps of a block one by one: warp v
// has tiles v, v + kWarps, ..., kTiles of them at most.
template <typename P, int kTiles, int kRows, int kAhead>
__device__ __forceinline__ void product(const char* in, int row_bytes, int inputs,
                                        const float* weights, int tiles,
                                        float (&sums)[kTiles][kRows][4]) {
#pragma unroll
  for (int f = 0; f < kTiles; ++f) {
#pragma unroll
    for (int c = 0; c < kRows; ++c) {
#pragma unroll
      for (int s = 0; s < 4; ++s) sums[f][c][s] = 0.0f;
    }
  }
  const int warp = threadIdx.x / 32;
  if constexpr (kAhead == 0) {
    if (warp < tiles) add_product<P>(in, row_bytes, inputs, weights, tiles, sums);
  } else if (kRows > 1 && warp + (kTiles - 1) * kWarps < tiles) {
    add_product<P, kTiles, kRows, kAhead, true>(in, row_bytes, inputs, weights, tiles, sums);
  } else if (warp < tiles) {
    add_product<P, kTiles, kRows, kAhead, false>(in, row_bytes, inputs, weights, tiles, sums);
  }
}

#endif

}  // namespace sda_fast::SDA_FAST_VARIANT
