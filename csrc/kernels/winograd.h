#pragma once

// Convolutions with kernels of 3 x 3 points in a quarter of the multiplications, by the minimal
// filtering F(4 x 4, 3 x 3) of Winograd (Lavin and Gray, 2016, https://arxiv.org/abs/1509.09308). A
// tile Y of 4 x 4 points of the result is made of the 6 x 6 points d of the source that it depends
// on,
//
//   Y = A^T (sum over the inputs of (G g G^T) * (B^T d B)) A,
//
// with the elementwise product * and the kernel g, for which G g G^T is computed once. With the
// tiles side by side the sum is 36 products of matrices, (tiles, inputs) by (inputs, outputs).
//
// Kernels of 1 x 3 points map 6 points of a row to 4 likewise, Y = A^T (sum of (G g) * (B^T d)), in
// half of the multiplications.
//
// A, B and G evaluate and interpolate polynomials at the points 0, a, -a, b, -b and infinity. Here
// a = 5/8 and b = 3/2, for which all coefficients are exact in float32 and errors are about those
// of a direct sum; those of the customary 1 and 2 are twice as large.
//
// Operations of a tile beside 2 * 36 inputs * outputs in the products: 2 * 144 inputs and 120
// outputs, most of them fused; of a row 2 * 6, 2 * 12 and 12. Items are of so few tiles that what
// is between the three steps stays near, and of so many that the kernel, which each reads in order,
// comes from L3 in the time of the products.

#include "padded.h"
#include "vector.h"

namespace sda_fast {

constexpr int64_t kAbreast = 16;  // outputs that lie side by side in the kernel

struct Winograd {
  const float* x;          // (batch, channels, in_rows, in_columns)
  FieldStrides x_strides;  // channels side by side
  const float* kernel;     // G g G^T, (36, panels, inputs, kAbreast), or G g, (6, ...)
  const float* bias;       // (outputs), or null
  float* out;              // (batch, rows, columns, outputs)
  bool add;                // to what is in `out`
  bool lines;              // the kernels are of 1 x 3 points
  int64_t batch, inputs, panels;
  int64_t in_rows, in_columns, rows, columns;
  int64_t pad_rows, pad_columns;  // zeros around the source
  int64_t tiles, parts;  // an item is so many tiles, and one of so many parts of the outputs
};

}  // namespace sda_fast

namespace sda_fast::SDA_FAST_VARIANT {

namespace winograd {

constexpr int64_t kTile = 4, kPatch = 6;  // points of a tile, and of what it depends on, in a row

SDA_FAST_FN int64_t tile_rows(const Winograd& w) { return w.lines ? 1 : kTile; }
SDA_FAST_FN int64_t patch_rows(const Winograd& w) { return w.lines ? 1 : kPatch; }
SDA_FAST_FN int64_t places(const Winograd& w) { return patch_rows(w) * kPatch; }

}  // namespace winograd

SDA_FAST_FN int64_t winograd_tiles(const Winograd& w) {
  const int64_t down = winograd::tile_rows(w), across = winograd::kTile;
  return w.batch * ((w.rows + down - 1) / down) * ((w.columns + across - 1) / across);
}

#ifndef SDA_FAST_GPU

namespace winograd {

constexpr float kA = 5.0f / 8, kB = 3.0f / 2, kA2 = kA * kA, kB2 = kB * kB;

// Vectors at any address.
SDA_FAST_FN Vector load(const float* p) {
  Vector v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
SDA_FAST_FN void store(float* p, const Vector& v) { __builtin_memcpy(p, &v, sizeof(v)); }

// B^T d
SDA_FAST_FN void transform_source(const Vector (&d)[kPatch], Vector (&v)[kPatch]) {
  const Vector even_a = d[4] - kB2 * d[2], odd_a = d[3] - kB2 * d[1];
  const Vector even_b = d[4] - kA2 * d[2], odd_b = d[3] - kA2 * d[1];
  v[0] = d[4] - (kA2 + kB2) * d[2] + (kA2 * kB2) * d[0];
  v[1] = even_a + kA * odd_a;
  v[2] = even_a - kA * odd_a;
  v[3] = even_b + kB * odd_b;
  v[4] = even_b - kB * odd_b;
  v[5] = d[5] - (kA2 + kB2) * d[3] + (kA2 * kB2) * d[1];
}

// A^T m
SDA_FAST_FN void transform_sums(const Vector (&m)[kPatch], Vector (&y)[kTile]) {
  const Vector even_a = m[1] + m[2], odd_a = m[1] - m[2];
  const Vector even_b = m[3] + m[4], odd_b = m[3] - m[4];
  y[0] = m[0] + even_a + even_b;
  y[1] = kA * odd_a + kB * odd_b;
  y[2] = kA2 * even_a + kB2 * even_b;
  y[3] = m[5] + (kA * kA2) * odd_a + (kB * kB2) * odd_b;
}

// Rows of tiles and vectors of outputs that are multiplied in registers.
#if defined(__AVX512F__)
constexpr int kRows = 12;
#elif defined(__AVX2__)
constexpr int kRows = 6;
#else
constexpr int kRows = 4;
#endif

// sums[r][0, 2 kLanes) = sum over i of v[r][i] kernel[i], whose second vector is `gap` further on.
template <int kCount>
inline void multiply_rows(const float* v, int64_t inputs, const float* kernel, int64_t gap,
                          float* sums, int64_t stride) {
  Vector s[kCount][2];
  for (int r = 0; r < kCount; ++r) s[r][0] = s[r][1] = Vector{};
  int64_t i = 0;
  do {  // there are inputs: sums stay in registers
    const Vector first = load(kernel + i * kAbreast), second = load(kernel + i * kAbreast + gap);
    for (int r = 0; r < kCount; ++r) {
      const Vector value = splat(v[r * inputs + i]);
      s[r][0] += value * first;
      s[r][1] += value * second;
    }
  } while (++i < inputs);
  for (int r = 0; r < kCount; ++r) {
    at(sums + r * stride) = s[r][0];
    at(sums + r * stride + kLanes) = s[r][1];
  }
}

template <int kCount>
inline void multiply_rest(int64_t count, const float* v, int64_t inputs, const float* kernel,
                          int64_t gap, float* sums, int64_t stride) {
  if constexpr (kCount > 0) {
    if (count == kCount) return multiply_rows<kCount>(v, inputs, kernel, gap, sums, stride);
    multiply_rest<kCount - 1>(count, v, inputs, kernel, gap, sums, stride);
  }
}

// sums (tiles, stride) = v (tiles, inputs) times `outputs` of the kernel, in whole panels.
inline void multiply(const float* v, int64_t tiles, int64_t inputs, const float* kernel,
                     int64_t outputs, float* sums, int64_t stride) {
  for (int64_t o = 0; o < outputs; o += 2 * kLanes) {
    const float* panel = kernel + o / kAbreast * inputs * kAbreast + o % kAbreast;
    // a vector as wide as a panel has its second in the next, or without one does the same twice
    const int64_t next = o + kAbreast < outputs ? inputs * kAbreast : 0;
    const int64_t gap = kLanes == kAbreast ? next : kLanes;
    int64_t t = 0;
    for (; t + kRows <= tiles; t += kRows) {
      multiply_rows<kRows>(v + t * inputs, inputs, panel, gap, sums + t * stride + o, stride);
    }
    multiply_rest<kRows - 1>(tiles - t, v + t * inputs, inputs, panel, gap, sums + t * stride + o,
                             stride);
  }
}

// The outputs of an item, in whole panels.
struct Part {
  int64_t first, outputs, stride;  // stride: of their sums, in pairs of panels

  Part(const Winograd& w, int64_t part) {
    const int64_t pairs = (w.panels + 1) / 2, begin = part * pairs / w.parts;
    const int64_t end = (part + 1) * pairs / w.parts,
                  last = 2 * end < w.panels ? 2 * end : w.panels;
    first = 2 * begin * kAbreast;
    outputs = last * kAbreast - first;
    stride = 2 * (end - begin) * kAbreast;
  }
};

// The scratch of an item. Planes of neighbouring places begin in different sets of the cache.
struct Scratch {
  int64_t source_plane, sums_plane;
  float *patch, *source, *sums;

  Scratch(const Winograd& w, const Part& part, float* memory)
      : source_plane(w.tiles * w.inputs + kAbreast),
        sums_plane(w.tiles * part.stride + kAbreast),
        patch(memory),
        source(patch + places(w) * w.inputs),
        sums(source + places(w) * source_plane) {}

  int64_t floats(const Winograd& w) const { return (sums - patch) + places(w) * sums_plane; }
};

// Where a tile's result begins.
struct Place {
  int64_t b, row, column;

  Place(const Winograd& w, int64_t tile) {
    const int64_t step = tile_rows(w), down = (w.rows + step - 1) / step;
    const int64_t across = (w.columns + kTile - 1) / kTile;
    b = tile / (down * across);
    row = tile / across % down * step;
    column = tile % across * kTile;
  }
};

// source = B^T d B of a tile, in row t of each plane. Asks for what the next tile adds to it.
template <bool kLines>
inline void take_source(const Winograd& w, const Scratch& scratch, const Place& place,
                        const Place& next, int64_t t) {
  constexpr int64_t kDown = kLines ? 1 : kPatch;
  const FieldStrides& s = w.x_strides;
  const int64_t top = place.row - w.pad_rows, left = place.column - w.pad_columns;
  const bool inside =
      top >= 0 && left >= 0 && top + kDown <= w.in_rows && left + kPatch <= w.in_columns;
  const float* d = w.x + place.b * s.batch + top * s.row + left * s.column;
  int64_t row = s.row, column = s.column;
  if (!inside) {
    row = kPatch * w.inputs;
    column = w.inputs;
    for (int64_t p = 0; p < kDown * kPatch; ++p) {
      const int64_t i = top + p / kPatch, j = left + p % kPatch;
      float* to = scratch.patch + p * w.inputs;
      if (i >= 0 && j >= 0 && i < w.in_rows && j < w.in_columns) {
        const float* from = w.x + place.b * s.batch + i * s.row + j * s.column;
        __builtin_memcpy(to, from, w.inputs * sizeof(float));
      } else {
        __builtin_memset(to, 0, w.inputs * sizeof(float));
      }
    }
    d = scratch.patch;
  }

  const float* ahead = w.x + next.b * s.batch + (next.row - w.pad_rows) * s.row +
                       (next.column - w.pad_columns) * s.column;
  const int64_t seen = next.column == 0 ? 0 : kPatch - kTile;
  float* to = scratch.source + t * w.inputs;
  for (int64_t c = 0; c < w.inputs; c += kLanes) {
    Vector half[kDown][kPatch], line[kPatch], result[kPatch];
    for (int64_t i = 0; i < kDown && c % kAbreast == 0; ++i) {  // a line of the cache each
      for (int64_t j = seen; j < kPatch; ++j) {
        __builtin_prefetch(ahead + i * s.row + j * s.column + c);
      }
    }
    for (int64_t j = 0; j < kPatch; ++j) {
      if constexpr (kLines) {
        half[0][j] = load(d + j * column + c);
      } else {
        for (int64_t i = 0; i < kPatch; ++i) line[i] = load(d + i * row + j * column + c);
        transform_source(line, result);
        for (int64_t i = 0; i < kPatch; ++i) half[i][j] = result[i];
      }
    }
    for (int64_t i = 0; i < kDown; ++i) {
      transform_source(half[i], result);
      for (int64_t j = 0; j < kPatch; ++j) {
        at(to + (i * kPatch + j) * scratch.source_plane + c) = result[j];
      }
    }
  }
}

// The tile's result, A^T sums A, for the outputs of a part.
template <bool kLines>
inline void give_result(const Winograd& w, const Scratch& scratch, const Part& part,
                        const Place& place, int64_t t) {
  constexpr int64_t kDown = kLines ? 1 : kTile;
  const int64_t channels = w.panels * kAbreast, line = w.columns * channels;
  const int64_t rows = w.rows - place.row, columns = w.columns - place.column;
  float* out = w.out + (place.b * w.rows + place.row) * line + place.column * channels + part.first;
  const float* from = scratch.sums + t * part.stride;
  for (int64_t o = 0; o < part.outputs; o += kLanes) {
    Vector half[kDown][kPatch], sums[kPatch], result[kTile];
    for (int64_t j = 0; j < kPatch; ++j) {
      if constexpr (kLines) {
        half[0][j] = at(from + j * scratch.sums_plane + o);
      } else {
        for (int64_t i = 0; i < kPatch; ++i) {
          sums[i] = at(from + (i * kPatch + j) * scratch.sums_plane + o);
        }
        transform_sums(sums, result);
        for (int64_t i = 0; i < kTile; ++i) half[i][j] = result[i];
      }
    }
    const Vector bias = w.bias != nullptr ? load(w.bias + part.first + o) : Vector{};
    for (int64_t i = 0; i < kDown && i < rows; ++i) {
      transform_sums(half[i], result);
      for (int64_t j = 0; j < kTile && j < columns; ++j) {
        float* to = out + i * line + j * channels + o;
        const Vector y = result[j] + bias;
        store(to, w.add ? y + load(to) : y);
      }
    }
  }
}

}  // namespace winograd

// How many floats an item needs beside what it reads and writes, at the most.
inline int64_t winograd_scratch(const Winograd& w) {
  return winograd::Scratch(w, winograd::Part(w, w.parts - 1), nullptr).floats(w);
}

template <bool kLines>
inline void winograd_item(const Winograd& w, float* memory, int64_t item) {
  using namespace winograd;
  const Part part(w, item % w.parts);
  const Scratch scratch(w, part, memory);
  const int64_t first = item / w.parts * w.tiles, left = winograd_tiles(w) - first;
  const int64_t count = left < w.tiles ? left : w.tiles;

  for (int64_t t = 0; t < count; ++t) {
    take_source<kLines>(w, scratch, Place(w, first + t), Place(w, first + t + 1), t);
  }
  const float* kernel = w.kernel + part.first * w.inputs;
  for (int64_t p = 0; p < places(w); ++p, kernel += w.panels * kAbreast * w.inputs) {
    multiply(scratch.source + p * scratch.source_plane, count, w.inputs, kernel, part.outputs,
             scratch.sums + p * scratch.sums_plane, part.stride);
  }
  for (int64_t t = 0; t < count; ++t) {
    give_result<kLines>(w, scratch, part, Place(w, first + t), t);
  }
}

inline void winograd_run(const Winograd& w, float* memory, int64_t item) {
  w.lines ? winograd_item<true>(w, memory, item) : winograd_item<false>(w, memory, item);
}

#endif

}  // namespace sda_fast::SDA_FAST_VARIANT
