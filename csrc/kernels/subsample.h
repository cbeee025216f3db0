#pragma once

// Every step-th element of the trailing dimensions, y[b, j] = x[b, start + step j], and the
// adjoint, which is 0 elsewhere. Either goes once over memory.

#include "number.h"

#ifdef SDA_FAST_GPU
#include "quad.h"
#endif

namespace sda_fast {

constexpr int kMostDims = 8;

// The dimensions of x (batch, shape) and of y (batch, size), both contiguous. A line is the last
// one.
struct Slices {
  int64_t batch;
  int dims;  // at least 1
  int64_t shape[kMostDims], start[kMostDims], step[kMostDims], size[kMostDims];
};

template <typename T>
struct Subsample {
  const T* in;
  T* out;
  Slices slices;
};

}  // namespace sda_fast

namespace sda_fast::SDA_FAST_VARIANT {

// The line of x that a line of y is taken from.
SDA_FAST_FN int64_t line_of_x(const Slices& s, int64_t line) {
  int64_t place = 0, scale = 1;
  for (int d = s.dims - 2; d >= 0; --d) {
    place += (s.start[d] + line % s.size[d] * s.step[d]) * scale;
    line /= s.size[d];
    scale *= s.shape[d];
  }
  return line * scale + place;
}

// The line of y that is taken from a line of x, or -1.
SDA_FAST_FN int64_t line_of_y(const Slices& s, int64_t line) {
  int64_t place = 0, scale = 1;
  for (int d = s.dims - 2; d >= 0; --d) {
    const int64_t offset = line % s.shape[d] - s.start[d];
    if (offset < 0 || offset % s.step[d] != 0 || offset / s.step[d] >= s.size[d]) return -1;
    line /= s.shape[d];
    place += offset / s.step[d] * scale;
    scale *= s.size[d];
  }
  return line * scale + place;
}

#ifndef SDA_FAST_GPU

// Takes lines [begin, end) of y.
template <typename T>
inline void subsample(const Subsample<T>& s, int64_t begin, int64_t end) {
  const int last = s.slices.dims - 1;
  const int64_t shape = s.slices.shape[last], start = s.slices.start[last];
  const int64_t step = s.slices.step[last], size = s.slices.size[last];
  for (int64_t line = begin; line < end; ++line) {
    const T* x = s.in + line_of_x(s.slices, line) * shape + start;
    T* y = s.out + line * size;
    if (step == 1) {
      SDA_FAST_INDEPENDENT
      for (int64_t j = 0; j < size; ++j) y[j] = x[j];
    } else {
      SDA_FAST_INDEPENDENT
      for (int64_t j = 0; j < size; ++j) y[j] = x[j * step];
    }
  }
}

// Writes lines [begin, end) of x.
template <typename T>
inline void subsample_adjoint(const Subsample<T>& s, int64_t begin, int64_t end) {
  const int last = s.slices.dims - 1;
  const int64_t shape = s.slices.shape[last], step = s.slices.step[last];
  for (int64_t line = begin; line < end; ++line) {
    const int64_t from = line_of_y(s.slices, line);
    const int64_t size = from < 0 ? 0 : s.slices.size[last];
    const int64_t start = size == 0 ? 0 : s.slices.start[last];  // of nothing, it may lie beyond
    const T* y = s.in + from * size;
    T* x = s.out + line * shape;
    if (step == 1) {
      for (int64_t i = 0; i < start; ++i) x[i] = T{};
      SDA_FAST_INDEPENDENT
      for (int64_t j = 0; j < size; ++j) x[start + j] = y[j];
      for (int64_t i = start + size; i < shape; ++i) x[i] = T{};
    } else {
      for (int64_t i = 0; i < shape; ++i) x[i] = T{};  // a line is in the cache when it is used
      for (int64_t j = 0; j < size; ++j) x[start + j * step] = y[j];
    }
  }
}

#else

// A thread an element, or a quad of a line.
template <typename T>
__global__ void __launch_bounds__(kThreads) subsample_kernel(Subsample<T> s, int64_t total) {
  const int last = s.slices.dims - 1;
  const int64_t shape = s.slices.shape[last], start = s.slices.start[last];
  const int64_t step = s.slices.step[last], size = s.slices.size[last];
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
#pragma unroll 1
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < total; i += stride) {
    const int64_t line = i / size, j = i - line * size;
    s.out[i] = s.in[line_of_x(s.slices, line) * shape + start + j * step];
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    subsample_adjoint_kernel(Subsample<T> s, int64_t total) {
  const int last = s.slices.dims - 1;
  const int64_t shape = s.slices.shape[last], start = s.slices.start[last];
  const int64_t step = s.slices.step[last], size = s.slices.size[last];
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
#pragma unroll 1
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < total; i += stride) {
    const int64_t line = i / shape, offset = i - line * shape - start;
    T value = {};
    if (offset >= 0 && offset % step == 0 && offset / step < size) {
      const int64_t from = line_of_y(s.slices, line);
      if (from >= 0) value = s.in[from * size + offset / step];
    }
    s.out[i] = value;
  }
}

#endif

}  // namespace sda_fast::SDA_FAST_VARIANT
