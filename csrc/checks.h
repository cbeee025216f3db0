#pragma once

// What an operator asks of its arguments, the same on every device. An error names the argument,
// what was expected and what came.

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <ostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kernels/number.h"
#include "kernels/philox.h"

namespace sda_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Throws where a condition is not met, and only then puts the parts of the message together.
template <typename... Parts>
void check(bool condition, const Parts&... parts) {
  if (condition) [[likely]] {
    return;
  }
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

// What a message says of a tensor or a list, as Python writes it.
struct ShapeOf {
  const Tensor& t;
};
struct DtypeOf {
  const Tensor& t;
};
struct ListOf {
  const std::vector<int64_t>& numbers;
};
struct ElementOf {
  const char* list;
  size_t place;
};

inline ShapeOf shape_of(const Tensor& t) { return {t}; }
inline DtypeOf dtype_of(const Tensor& t) { return {t}; }
inline ListOf list_of(const std::vector<int64_t>& numbers) { return {numbers}; }

template <typename Numbers>
std::ostream& separated(std::ostream& out, const Numbers& numbers) {
  const char* separator = "";
  for (const int64_t n : numbers) out << std::exchange(separator, ", ") << n;
  return out;
}

inline std::ostream& operator<<(std::ostream& out, ShapeOf of) {
  return separated(out << '(', of.t.sizes()) << (of.t.dim() == 1 ? ",)" : ")");
}

inline std::ostream& operator<<(std::ostream& out, ListOf of) {
  return separated(out << '[', of.numbers) << ']';
}

inline std::ostream& operator<<(std::ostream& out, ElementOf of) {
  return out << of.list << '[' << of.place << ']';
}

inline std::ostream& operator<<(std::ostream& out, DtypeOf of) {
  switch (of.t.scalar_type()) {
    case ScalarType::Float:
      return out << "float32";
    case ScalarType::Double:
      return out << "float64";
    case ScalarType::Half:
      return out << "float16";
    case ScalarType::BFloat16:
      return out << "bfloat16";
    case ScalarType::Long:
      return out << "int64";
    case ScalarType::Int:
      return out << "int32";
    case ScalarType::Char:
      return out << "int8";
    default:
      return out << torch::headeronly::toString(of.t.scalar_type());
  }
}

// The product of the sizes from dimension `first` on.
inline int64_t size_from(const Tensor& t, int64_t first) {
  int64_t size = 1;
  for (int64_t d = first; d < t.dim(); ++d) size *= t.size(d);
  return size;
}

inline void check_state(const char* name, const Tensor& t, int64_t min_dim) {
  const ScalarType type = t.scalar_type();
  check(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
            type == ScalarType::Half,
        name, " must be float32, float64, bfloat16 or float16, but is ", dtype_of(t), ".");
  check(t.dim() >= min_dim, name, " must have at least ", min_dim, " dimension(s), but has shape ",
        shape_of(t), ".");
}

template <typename Name>
void check_same_device(const Name& name, const Tensor& t, const char* other_name,
                       const Tensor& other) {
  check(t.is_cuda() == other.is_cuda() && t.get_device_index() == other.get_device_index(), name,
        " must be on the same device as ", other_name, ", but is not.");
}

// eps must be just like x.
template <typename Name>
void check_like(const Name& name, const Tensor& t, const char* other_name, const Tensor& other) {
  const auto sizes = t.sizes(), expected = other.sizes();
  check(std::equal(sizes.begin(), sizes.end(), expected.begin(), expected.end()), name,
        " must have the shape of ", other_name, ", ", shape_of(other), ", but has ", shape_of(t),
        ".");
  check(t.scalar_type() == other.scalar_type(), name, " must have the dtype of ", other_name, ", ",
        dtype_of(other), ", but has ", dtype_of(t), ".");
  check_same_device(name, t, other_name, other);
}

inline void check_plan(const Tensor& start, const Tensor& weight, const char* state_name,
                       const Tensor& state) {
  check(start.scalar_type() == ScalarType::Long && start.dim() == 1,
        "start must be int64 with one dimension (windows), but is ", dtype_of(start), " of shape ",
        shape_of(start), ".");
  check(weight.scalar_type() == ScalarType::Char && weight.dim() == 2,
        "weight must be int8 with two dimensions (windows, rows), but is ", dtype_of(weight),
        " of shape ", shape_of(weight), ".");
  check(weight.size(0) == start.size(0), "weight must have as many windows as start, ",
        start.size(0), ", but has shape ", shape_of(weight), ".");
  check_same_device("start", start, state_name, state);
  check_same_device("weight", weight, state_name, state);
}

// The channels C of windows (B, N, w C, *) that are to be composed into `length` states.
inline int64_t check_windows(const Tensor& windows, const Tensor& weight, int64_t length) {
  const int64_t count = weight.size(0), window = weight.size(1);
  check(length >= 0, "length must be at least 0, but is ", length, ".");
  check(window > 0, "weight must have at least one row a window, but has shape ", shape_of(weight),
        ".");
  check(windows.size(1) == count && windows.size(2) % window == 0, "windows must have shape (B, ",
        count, ", a multiple of ", window, ", *) for weight of shape ", shape_of(weight),
        ", but has ", shape_of(windows), ".");
  return windows.size(2) / window;
}

// x must have the shape (B, L, C, *) of what the windows are composed into.
inline void check_composed(const Tensor& x, const Tensor& windows, int64_t channels) {
  bool same = x.dim() == windows.dim() && x.size(0) == windows.size(0) && x.size(2) == channels;
  for (int64_t d = 3; same && d < x.dim(); ++d) same = x.size(d) == windows.size(d);
  check(same, "x must have the shape (B, L, C, *) of the composed windows, with C = ", channels,
        " for windows of shape ", shape_of(windows), ", but has ", shape_of(x), ".");
  check(x.scalar_type() == windows.scalar_type(), "x must have the dtype of windows, ",
        dtype_of(windows), ", but has ", dtype_of(x), ".");
  check_same_device("x", x, "windows", windows);
}

// The numbers that place a stream of noise, each within the word that it fills.
inline NoiseKey check_noise(const Tensor& x, int64_t seed, int64_t step, int64_t correction,
                            int64_t first_sample) {
  constexpr int64_t kWord = int64_t{1} << 32;
  check(step >= 0 && step < kWord, "step must be at least 0 and below 2^32, but is ", step, ".");
  check(correction >= 0 && correction < 65536,
        "correction must be at least 0 and below 65536, but is ", correction, ".");
  check(first_sample >= 0 && first_sample < kWord && x.size(0) <= kWord - first_sample,
        "first_sample must be at least 0 and the batch end below 2^32, but first_sample is ",
        first_sample, " and the batch has ", x.size(0), " sample(s).");
  return SDA_FAST_VARIANT::noise_key(seed, step, correction);
}

// The type that the numbers beside a state have: that of its arithmetic.
inline ScalarType arithmetic_type(const Tensor& state) {
  return state.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// A list has a number for each of the trailing `dims` dimensions.
inline void check_trailing(const char* name, const std::vector<int64_t>& list, size_t dims) {
  check(list.size() == dims, name, " must have ", dims, " number(s), but is ", list_of(list), ".");
}

inline bool overlap(const Tensor& a, const Tensor& b) {
  const auto begin = [](const Tensor& t) { return reinterpret_cast<uintptr_t>(t.data_ptr()); };
  const auto end = [&](const Tensor& t) {
    return begin(t) + static_cast<uintptr_t>(t.numel()) * t.element_size();
  };
  return begin(a) < end(b) && begin(b) < end(a);
}

// t, or a contiguous copy of it: to ask torch for one takes long, even where there is none to make.
inline Tensor as_contiguous(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

// Whether tensors of one shape lie in memory in the same order.
inline bool same_order(const Tensor& a, const Tensor& b) {
  if (a.is_contiguous() && b.is_contiguous()) return true;
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) > 1 && a.stride(d) != b.stride(d)) return false;
  }
  return true;
}

// t, or a copy of it, in the order of `like`, which is dense.
inline Tensor ordered_as(const Tensor& like, const Tensor& t) {
  if (same_order(t, like)) return t;
  Tensor copy = torch::stable::empty_like(like);
  torch::stable::copy_(copy, t);
  return copy;
}

// Whether the dimensions from `first` on lie in memory without gaps and in their order.
inline bool contiguous_from(const Tensor& t, int64_t first) {
  if (t.is_contiguous()) return true;
  int64_t expected = 1;
  for (int64_t d = t.dim(); d-- > first;) {
    if (t.size(d) > 1 && t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

// t, or a contiguous copy of it if its rows, the dimensions from `first` on, are not.
inline Tensor with_rows(const Tensor& t, int64_t first) {
  return contiguous_from(t, first) ? t : torch::stable::contiguous(t);
}

// How far apart the neighbours along a dimension lie, if there are any.
inline int64_t step_along(const Tensor& t, int64_t d) { return t.size(d) > 1 ? t.stride(d) : 0; }

// Whether a tensor lies in memory without gaps, in any order of its dimensions.
inline bool is_dense(const Tensor& t) {
  if (t.is_contiguous()) return true;
  std::vector<std::pair<int64_t, int64_t>> dimensions;
  for (int64_t d = 0; d < t.dim(); ++d) {
    if (t.size(d) != 1) dimensions.emplace_back(t.stride(d), t.size(d));
  }
  std::sort(dimensions.begin(), dimensions.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dimensions) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

// The tensor that an operator in place works on: x itself or a copy of it, which `finish` copies
// back. It is contiguous; or, for an operator that does the same to every element, dense.
struct InPlace {
  explicit InPlace(const Tensor& target, const char* name = "x", bool elementwise = false)
      : x(target), work(elementwise && is_dense(target) ? target : as_contiguous(target)) {
    if (x.is_contiguous()) return;
    for (int64_t d = 0; d < x.dim(); ++d) {
      check(x.numel() == 0 || x.size(d) < 2 || x.stride(d) != 0, name, " of shape ", shape_of(x),
            " must have memory of its own for every element, but is expanded along dimension ", d,
            ".");
    }
  }

  void finish() {
    if (work.data_ptr() != x.data_ptr()) torch::stable::copy_(x, work);
  }

  // `other`, in the order of `work`, and a copy if writing to that would change parts of it unread.
  Tensor beside(const Tensor& other) const {
    Tensor t = ordered_as(work, other);
    if (t.data_ptr() != work.data_ptr() && overlap(t, work)) t = torch::stable::clone(t);
    return t;
  }

  Tensor x, work;
};

// Calls f with a value of the tensor's type.
template <typename F>
void dispatch(const Tensor& t, const F& f) {
  switch (t.scalar_type()) {
    case ScalarType::Double:
      return f(double{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    case ScalarType::Half:
      return f(Float16{});
    default:
      return f(float{});
  }
}

// The sizes of a window gather's or composition's result: its leading ones, then those of t from
// dimension `first` on.
inline std::vector<int64_t> sizes(std::vector<int64_t> leading, const Tensor& t, int64_t first) {
  for (int64_t d = first; d < t.dim(); ++d) leading.push_back(t.size(d));
  return leading;
}

}  // namespace sda_fast
