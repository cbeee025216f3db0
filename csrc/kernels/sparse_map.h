#pragma once

// A sparse linear map of states, in compressed rows: y[b, m] = sum over row[m] <= j < row[m + 1] of
// value[j] x[b, column[j]], in order of j. Without values they are 1: a selection.

#include "number.h"

#ifdef SDA_FAST_GPU
#include "quad.h"
#endif

namespace sda_fast {

// How much a loop on the CPU works on at a time: samples, and rows of as many entries.
constexpr int kSamples = 8, kRows = 16;

// x (batch, columns), row (rows + 1), column and value (entries), out (batch, rows), all
// contiguous.
template <typename T>
struct SparseMap {
  const T* x;
  const int64_t* row;
  const int64_t* column;
  const Accumulate<T>* value;  // or null
  T* out;
  int64_t batch, columns, rows, entries;
};

}  // namespace sda_fast

namespace sda_fast::SDA_FAST_VARIANT {

#ifndef SDA_FAST_GPU

// A row of kCount neighbouring samples: an entry is read once for all of them.
template <int kCount, bool kValues, typename T>
inline void sparse_map_row(const SparseMap<T>& s, int64_t b, int64_t m) {
  const T* x = s.x + b * s.columns;
  Accumulate<T> sum[kCount] = {};
  for (int64_t j = s.row[m]; j < s.row[m + 1]; ++j) {
    const T* element = x + s.column[j];
    for (int k = 0; k < kCount; ++k, element += s.columns) {
      sum[k] =
          kValues ? multiply_add(s.value[j], widen(*element), sum[k]) : sum[k] + widen(*element);
    }
  }
  for (int k = 0; k < kCount; ++k) s.out[(b + k) * s.rows + m] = narrow<T>(sum[k]);
}

// The number of entries of each of kRows rows from m on, or 0 if they have not all as many, or the
// first two begin with columns that are no neighbours.
template <typename T>
inline int64_t entries_of_each(const SparseMap<T>& s, int64_t m) {
  const int64_t first = s.row[m], n = s.row[m + 1] - first;
  if (n == 0 || s.row[m + kRows] - first != kRows * n) return 0;
  bool alike = s.column[first + n] == s.column[first] + 1;
  for (int i = 2; i < kRows; ++i) alike &= s.row[m + i] - first == i * n;
  return alike ? n : 0;
}

// kRows rows of n entries each, of kSamples neighbouring samples. Where the rows read neighbours,
// as differences on a grid do, that is arithmetic of vectors.
template <bool kValues, typename T>
inline void sparse_map_rows(const SparseMap<T>& s, int64_t b, int64_t m, int64_t n) {
  const int64_t first = s.row[m];
  Accumulate<T> sum[kSamples][kRows] = {};
  for (int64_t j = 0; j < n; ++j) {
    int64_t column[kRows];
    Accumulate<T> value[kRows];
    bool neighbours = true;
    for (int i = 0; i < kRows; ++i) {
      column[i] = s.column[first + i * n + j];
      if (kValues) value[i] = s.value[first + i * n + j];
      neighbours &= column[i] == column[0] + i;
    }
    const T* x = s.x + b * s.columns;
    const auto add = [&](int k, int i, Accumulate<T> element) {
      sum[k][i] = kValues ? multiply_add(value[i], element, sum[k][i]) : sum[k][i] + element;
    };
    if (neighbours) {
      x += column[0];
      for (int k = 0; k < kSamples; ++k, x += s.columns) {
        for (int i = 0; i < kRows; ++i) add(k, i, widen(x[i]));
      }
    } else {
      for (int i = 0; i < kRows; ++i) {
        for (int k = 0; k < kSamples; ++k) add(k, i, widen(x[k * s.columns + column[i]]));
      }
    }
  }
  for (int k = 0; k < kSamples; ++k) {
    T* out = s.out + (b + k) * s.rows + m;
    for (int i = 0; i < kRows; ++i) out[i] = narrow<T>(sum[k][i]);
  }
}

template <bool kValues, typename T>
inline void sparse_map_run(const SparseMap<T>& s, int64_t begin, int64_t end) {
  const int64_t grouped = s.batch / kSamples;
  for (int64_t item = begin; item < end;) {
    const int64_t group = item / s.rows, m = item - group * s.rows;
    const int64_t left = s.rows - m < end - item ? s.rows - m : end - item;
    const int64_t rows = left < kRows ? left : kRows;
    const int64_t b = group * kSamples;
    const int64_t entries = group < grouped && rows == kRows ? entries_of_each(s, m) : 0;
    if (entries > 0) {
      sparse_map_rows<kValues>(s, b, m, entries);
    } else if (group < grouped) {
      for (int64_t i = 0; i < rows; ++i) sparse_map_row<kSamples, kValues>(s, b, m + i);
    } else {
      const int64_t alone = group + grouped * (kSamples - 1);
      for (int64_t i = 0; i < rows; ++i) sparse_map_row<1, kValues>(s, alone, m + i);
    }
    item += rows;
  }
}

// Items [begin, end): the rows of each group of kSamples samples, then those of each sample left.
template <typename T>
inline void sparse_map(const SparseMap<T>& s, int64_t begin, int64_t end) {
  if (s.value != nullptr) {
    sparse_map_run<true>(s, begin, end);
  } else {
    sparse_map_run<false>(s, begin, end);
  }
}

#else

// A thread an element. The map cannot be checked here without waiting for the device, so a column
// beyond the state is NaN, and no entry beyond the map's is read.
template <typename T>
__global__ void __launch_bounds__(kThreads) sparse_map_kernel(SparseMap<T> s) {
  const int64_t total = s.batch * s.rows;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < total; i += stride) {
    const int64_t b = i / s.rows, m = i - b * s.rows;
    const int64_t first = s.row[m] < 0 ? 0 : s.row[m];
    const int64_t last = s.row[m + 1] > s.entries ? s.entries : s.row[m + 1];
    Accumulate<T> sum = 0;
    for (int64_t j = first; j < last; ++j) {
      const int64_t column = s.column[j];
      Accumulate<T> element;
      if (column >= 0 && column < s.columns) {
        element = widen(s.x[b * s.columns + column]);
      } else {
        set_nan(element);
      }
      sum = s.value != nullptr ? multiply_add(s.value[j], element, sum) : sum + element;
    }
    s.out[i] = narrow<T>(sum);
  }
}

#endif

}  // namespace sda_fast::SDA_FAST_VARIANT
