#pragma once

// What the observation operators ask of their arguments, the same on every device, and the
// dimensions that their kernels see: neighbours that can be one are one.

#include <optional>

#include "checks.h"
#include "kernels/block_mean.h"
#include "kernels/residual.h"
#include "kernels/subsample.h"

namespace sda_fast {

// The dimensions that a state has beside those that a list of numbers is for.
inline int64_t leading_dims(const char* name, const Tensor& t, const char* list_name,
                            const std::vector<int64_t>& list) {
  const auto dims = static_cast<int64_t>(list.size());
  check(dims >= 1 && dims <= kMostDims, list_name, " must have 1 to ", kMostDims,
        " number(s), but is ", list_of(list), ".");
  check(t.dim() >= dims, name, " must have at least ", dims, " dimension(s), but has shape ",
        shape_of(t), ".");
  return t.dim() - dims;
}

inline std::vector<int64_t> leading_sizes(const Tensor& t, int64_t leading,
                                          const std::vector<int64_t>& trailing) {
  std::vector<int64_t> sizes(t.sizes().begin(), t.sizes().begin() + leading);
  sizes.insert(sizes.end(), trailing.begin(), trailing.end());
  return sizes;
}

// Slices of states (leading, shape), which must lie in them.
inline Slices slices_of(const Tensor& t, int64_t leading, const std::vector<int64_t>& shape,
                        const std::vector<int64_t>& start, const std::vector<int64_t>& step,
                        const std::vector<int64_t>& size) {
  check_trailing("step", step, start.size());
  check_trailing("size", size, start.size());
  check_trailing("shape", shape, start.size());

  Slices s = {};
  s.batch = 1;
  for (int64_t d = 0; d < leading; ++d) s.batch *= t.size(d);
  int64_t total = s.batch;
  for (size_t d = 0; d < shape.size(); ++d) {
    check(shape[d] >= 0 && !__builtin_mul_overflow(total, shape[d], &total),
          "shape must be of at least 0 and fewer than 2^63 elements, but is ", list_of(shape), ".");
    check(start[d] >= 0, "start must be at least 0, but start[", d, "] is ", start[d], ".");
    check(step[d] >= 1, "step must be at least 1, but step[", d, "] is ", step[d], ".");
    check(size[d] >= 0, "size must be at least 0, but size[", d, "] is ", size[d], ".");
    check(
        size[d] == 0 || (start[d] < shape[d] && size[d] - 1 <= (shape[d] - 1 - start[d]) / step[d]),
        "size[", d, "], ", size[d], ", from start ", start[d], " in steps of ", step[d],
        " must lie in a dimension of ", shape[d], ", but does not.");

    const bool whole = start[d] == 0 && size[d] == shape[d] && (step[d] == 1 || size[d] <= 1);
    const int last = s.dims - 1;
    if (whole && s.dims == 0 && d + 1 < shape.size()) {
      s.batch *= shape[d];
    } else if (whole && s.dims > 0 && s.step[last] == 1) {
      s.shape[last] *= shape[d];
      s.start[last] *= shape[d];
      s.size[last] *= shape[d];
    } else {
      s.shape[s.dims] = shape[d];
      s.start[s.dims] = start[d];
      s.step[s.dims] = size[d] <= 1 ? 1 : step[d];
      s.size[s.dims] = size[d];
      ++s.dims;
    }
  }
  return s;
}

// The blocks of states or of their means, whichever t is.
struct BlockSizes {
  BlockSizes(const char* name, const Tensor& t, const std::vector<int64_t>& block,
             bool are_states) {
    const int64_t leading = leading_dims(name, t, "block", block);
    means = states = std::vector<int64_t>(t.sizes().begin(), t.sizes().begin() + leading);
    blocks.batch = blocks.lines = blocks.elements = 1;
    for (const int64_t n : means) blocks.batch *= n;

    int64_t total = std::max<int64_t>(1, blocks.batch);
    bool last_is_one = false;  // the last dimension has blocks of one element
    for (size_t d = 0; d < block.size(); ++d) {
      const int64_t n = t.size(leading + static_cast<int64_t>(d)), k = block[d];
      check(k >= 1, "block must be at least 1, but block[", d, "] is ", k, ".");
      check(!are_states || n % k == 0, "block must divide the last dimensions of ", name,
            ", but block[", d, "] is ", k, " and ", name, " has shape ", shape_of(t), ".");
      const int64_t size = are_states ? n / k : n;
      int64_t whole = 0;
      check(!__builtin_mul_overflow(size, k, &whole) &&
                !__builtin_mul_overflow(total, std::max<int64_t>(1, whole), &total) &&
                !__builtin_mul_overflow(blocks.elements, k, &blocks.elements),
            "block must make states of fewer than 2^63 elements, but is ", list_of(block), ".");
      means.push_back(size);
      states.push_back(whole);

      if (k == 1 && (last_is_one || (blocks.dims == 0 && d + 1 < block.size()))) {
        (blocks.dims == 0 ? blocks.batch : blocks.size[blocks.dims - 1]) *= size;
      } else {
        blocks.size[blocks.dims] = size;
        blocks.block[blocks.dims] = k;
        ++blocks.dims;
        last_is_one = k == 1;
      }
    }
    for (int d = 0; d + 1 < blocks.dims; ++d) blocks.lines *= blocks.block[d];
    check(blocks.lines < int64_t{1} << 32, "block must have fewer than 2^32 lines, but is ",
          list_of(block), ".");
  }

  std::vector<int64_t> means, states;
  Blocks blocks = {};
};

// The arguments of a sparse map, contiguous.
struct SparseOperands {
  SparseOperands(const Tensor& x_, const Tensor& row_, const Tensor& column_,
                 const std::optional<Tensor>& value_) {
    check_state("x", x_, 1);
    for (const auto& [name, t] :
         {std::pair<const char*, const Tensor&>{"row", row_}, {"column", column_}}) {
      check(t.scalar_type() == ScalarType::Long && t.dim() == 1, name,
            " must be int64 with one dimension, but is ", dtype_of(t), " of shape ", shape_of(t),
            ".");
      check_same_device(name, t, "x", x_);
    }
    check(row_.size(0) >= 1, "row must have a number more than there are rows, but is empty.");
    rows = row_.size(0) - 1;
    entries = column_.size(0);
    columns = size_from(x_, 1);
    if (value_) {
      const ScalarType type = arithmetic_type(x_);
      check(value_->scalar_type() == type && value_->dim() == 1 && value_->size(0) == entries,
            "value must be ", type == ScalarType::Double ? "float64" : "float32",
            " of the shape of column, (", entries, ",), beside an x of ", dtype_of(x_), ", but is ",
            dtype_of(*value_), " of shape ", shape_of(*value_), ".");
      check_same_device("value", *value_, "x", x_);
      value = as_contiguous(*value_);
    }
    x = as_contiguous(x_);
    row = as_contiguous(row_);
    column = as_contiguous(column_);
  }

  Tensor x, row, column;
  std::optional<Tensor> value;
  int64_t columns, rows, entries;
};

// y, std or gamma of a residual, as its loops read it: with the sizes given, or as one number.
inline Tensor broadcast(const char* name, const Tensor& t, const std::vector<int64_t>& sizes,
                        const char* other_name, bool uniform) {
  const auto dims = static_cast<int64_t>(sizes.size());
  bool fits = t.dim() <= dims;
  int64_t numel = 1;
  for (int64_t d = 0; d < dims; ++d) {
    const int64_t of_t = d - (dims - t.dim());
    fits = fits && (of_t < 0 || t.size(of_t) == 1 || t.size(of_t) == sizes[d]);
    numel *= sizes[d];
  }
  check(fits, name, " must broadcast to ", other_name, ", of shape ", list_of(sizes),
        ", but has shape ", shape_of(t), ".");
  if (t.numel() == numel || (uniform && t.numel() == 1)) return as_contiguous(t);
  Tensor whole = torch::stable::new_empty(t, sizes);
  torch::stable::copy_(whole, t);
  return whole;
}

// The arguments of a residual, contiguous, y of as many dimensions as came.
struct ResidualOperands {
  ResidualOperands(const Tensor& y_, const Tensor& prediction_, const Tensor& std_,
                   const Tensor& gamma_) {
    check_state("prediction", prediction_, 0);
    const ScalarType type = arithmetic_type(prediction_);
    for (const auto& [name, t] :
         {std::pair<const char*, const Tensor&>{"y", y_}, {"std", std_}, {"gamma", gamma_}}) {
      check(t.scalar_type() == type, name, " must be ",
            type == ScalarType::Double ? "float64" : "float32", " beside a prediction of ",
            dtype_of(prediction_), ", but is ", dtype_of(t), ".");
      check_same_device(name, t, "prediction", prediction_);
    }
    check(y_.dim() <= prediction_.dim(), "y must broadcast to prediction, of shape ",
          shape_of(prediction_), ", but has shape ", shape_of(y_), ".");
    const int64_t first = prediction_.dim() - y_.dim();
    const std::vector<int64_t> sizes(prediction_.sizes().begin() + first,
                                     prediction_.sizes().end());
    size = size_from(prediction_, first);
    batch = size == 0 ? 0 : prediction_.numel() / size;
    y = broadcast("y", y_, sizes, "the last dimensions of prediction", false);
    std = broadcast("std", std_, sizes, "y", true);
    gamma = broadcast("gamma", gamma_, sizes, "y", true);
    prediction = as_contiguous(prediction_);
  }

  Tensor y, prediction, std, gamma;
  int64_t batch, size;
};

template <typename T>
Residual<T> residual_args(const ResidualOperands& of, double ratio, const Tensor& out) {
  using Number = Accumulate<T>;
  return {static_cast<const Number*>(of.y.data_ptr()),
          static_cast<const T*>(of.prediction.data_ptr()),
          static_cast<const Number*>(of.std.data_ptr()),
          static_cast<const Number*>(of.gamma.data_ptr()),
          static_cast<T*>(out.data_ptr()),
          of.batch,
          of.size,
          of.std.numel() == 1,
          of.gamma.numel() == 1,
          static_cast<Number>(ratio * ratio)};
}

}  // namespace sda_fast
