#pragma once

// What the operators on fields (B, C, H, W) before a convolution ask of their arguments, the same
// on every device.

#include <optional>

#include "checks.h"
#include "kernels/activation_pad.h"
#include "kernels/norm_pad.h"

namespace sda_fast {

inline void check_field(const char* name, const Tensor& t) {
  check_state(name, t, 4);
  check(t.dim() == 4, name, " must have shape (B, C, H, W), but has shape ", shape_of(t), ".");
  check(t.size(1) >= 1 && t.size(1) <= kMostChannels, name, " must have 1 to ", kMostChannels,
        " channels, but has shape ", shape_of(t), ".");
}

// A field of the dtype of x and, where x is the source, `up` times as many points.
inline void check_beside(const char* name, const Tensor& t, const Tensor& x,
                         const std::vector<int64_t>& up) {
  const std::vector<int64_t> expected = {x.size(0), x.size(1), up[0] * x.size(2),
                                         up[1] * x.size(3)};
  bool same = t.dim() == 4;
  for (int64_t d = 0; same && d < 4; ++d) same = t.size(d) == expected[d];
  check(same, name, " must have shape ", list_of(expected), ", but has shape ", shape_of(t), ".");
  check(t.scalar_type() == x.scalar_type(), name, " must be ", dtype_of(x), ", but is ",
        dtype_of(t), ".");
  check_same_device(name, t, "the other tensors", x);
}

constexpr int64_t kMostPoints = int64_t{1} << 31;  // so that no product of sizes overflows

// x must have been found to have fewer points than that.
inline void check_upsample(const std::vector<int64_t>& up, const Tensor& x) {
  check_trailing("upsample", up, 2);
  for (int64_t d = 0; d < 2; ++d) {
    check(up[d] >= 1 && up[d] < kMostPoints && up[d] * x.size(2 + d) < kMostPoints,
          "upsample must be at least 1 and give fewer than 2^31 rows or columns, but is ",
          list_of(up), " for shape ", shape_of(x), ".");
  }
}

inline void check_points(const Tensor& x) {
  int64_t points = 1;
  for (const int64_t d : {0, 2, 3}) {
    const bool fewer = x.size(d) < kMostPoints && points * x.size(d) < kMostPoints;
    check(fewer, "fields must have fewer than 2^31 points in all, but have shape ", shape_of(x),
          ".");
    points *= x.size(d);
  }
}

inline FieldStrides strides_of(const Tensor& t) {
  return {t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

inline FieldStrides strides_of(const std::optional<Tensor>& t) {
  return t ? strides_of(*t) : FieldStrides{};
}

template <typename T>
const T* data_of(const std::optional<Tensor>& t) {
  return t ? static_cast<const T*>(t->data_ptr()) : nullptr;
}

// x repeated and padded.
inline Padded padded_of(const Tensor& x, const std::vector<int64_t>& padding,
                        const std::vector<int64_t>& up) {
  check_trailing("padding", padding, 2);
  check_points(x);
  check_upsample(up, x);
  for (int64_t d = 0; d < 2; ++d) {
    check(padding[d] >= 0 && padding[d] <= up[d] * x.size(2 + d),
          "padding must be at least 0 and at most the size that it pads, but is ", list_of(padding),
          " for shape ", shape_of(x), ".");
  }
  return {x.size(0), x.size(1), x.size(2), x.size(3), padding[0], padding[1], up[0], up[1]};
}

// The sizes of what it is padded to, channels last.
inline std::vector<int64_t> padded_sizes(const Padded& p) {
  return {p.batch, p.up_rows * p.height + 2 * p.pad_rows,
          p.up_columns * p.width + 2 * p.pad_columns, p.channels};
}

// (B, H, W, C) as (B, C, H, W), where it lies.
inline Tensor channels_first(const Tensor& t) {
  return torch::stable::transpose(torch::stable::transpose(t, 1, 3), 2, 3);
}

struct NormPadOperands {
  NormPadOperands(const Tensor& x, const std::optional<Tensor>& shift_,
                  const std::vector<int64_t>& padding, const std::vector<int64_t>& upsample) {
    check_field("x", x);
    padded = padded_of(x, padding, upsample);
    type = arithmetic_type(x);
    if (!shift_) return;
    check(shift_->scalar_type() == type && shift_->dim() == 2 && shift_->size(1) == x.size(1) &&
              (shift_->size(0) == 1 || shift_->size(0) == x.size(0)),
          "shift must be ", type == ScalarType::Double ? "float64" : "float32", " of shape (1 or ",
          x.size(0), ", ", x.size(1), ") beside an x of ", dtype_of(x), ", but is ",
          dtype_of(*shift_), " of shape ", shape_of(*shift_), ".");
    check_same_device("shift", *shift_, "x", x);
    shift = as_contiguous(*shift_);
  }

  template <typename T>
  NormPad<T> arguments(const Tensor& x, double eps, const Tensor& out, const Tensor& scale) const {
    using A = Accumulate<T>;
    return {static_cast<const T*>(x.data_ptr()),
            strides_of(x),
            data_of<A>(shift),
            shift && shift->size(0) > 1 ? shift->size(1) : 0,
            static_cast<A>(eps),
            static_cast<T*>(out.data_ptr()),
            static_cast<A*>(scale.data_ptr()),
            padded};
  }

  std::vector<int64_t> scale_sizes() const { return {padded.batch, padded.height, padded.width}; }

  Padded padded;
  ScalarType type;  // of the scale
  std::optional<Tensor> shift;
};

struct NormPadVjpOperands {
  NormPadVjpOperands(const Tensor& cotangent, const Tensor& normed, const Tensor& scale_,
                     const std::optional<Tensor>& residual, const std::vector<int64_t>& padding,
                     const std::vector<int64_t>& upsample_)
      : upsample(upsample_) {
    check_field("normed", normed);
    padded = padded_of(normed, padding, {1, 1});
    check_upsample(upsample, normed);
    check_beside("cotangent", cotangent, normed, upsample);
    if (residual) check_beside("residual", *residual, normed, {1, 1});
    const ScalarType type = arithmetic_type(normed);
    check(scale_.scalar_type() == type && scale_.dim() == 3 && scale_.size(0) == normed.size(0) &&
              scale_.size(1) == normed.size(2) && scale_.size(2) == normed.size(3),
          "scale must be ", type == ScalarType::Double ? "float64" : "float32", " of shape (",
          normed.size(0), ", ", normed.size(2), ", ", normed.size(3), "), but is ",
          dtype_of(scale_), " of shape ", shape_of(scale_), ".");
    check_same_device("scale", scale_, "normed", normed);
    scale = as_contiguous(scale_);
  }

  template <typename T>
  NormPadVjp<T> arguments(const Tensor& cotangent, const Tensor& normed,
                          const std::optional<Tensor>& residual, const Tensor& out) const {
    return {static_cast<const T*>(cotangent.data_ptr()),
            strides_of(cotangent),
            static_cast<const T*>(normed.data_ptr()),
            strides_of(normed),
            static_cast<const Accumulate<T>*>(scale.data_ptr()),
            data_of<T>(residual),
            strides_of(residual),
            upsample[0],
            upsample[1],
            static_cast<T*>(out.data_ptr()),
            padded};
  }

  std::vector<int64_t> upsample;
  Padded padded;
  Tensor scale;
};

struct ActivationPadOperands {
  ActivationPadOperands(const std::optional<Tensor>& cotangent, const Tensor& x,
                        const std::optional<int64_t>& activation_,
                        const std::vector<int64_t>& padding, const std::optional<Tensor>& bias_)
      : activation(activation_) {
    check_field("x", x);
    padded = padded_of(x, padding, {1, 1});
    if (cotangent) check_beside("cotangent", *cotangent, x, {1, 1});
    check(!activation || (*activation >= 0 && *activation < 5),
          "activation must be from 0 to 4, but is ", activation.value_or(0), ".");
    if (!bias_) return;
    const ScalarType type = arithmetic_type(x);
    check(bias_->scalar_type() == type && bias_->dim() == 1 && bias_->size(0) == x.size(1),
          "bias must be ", type == ScalarType::Double ? "float64" : "float32", " of shape (",
          x.size(1), ") beside an x of ", dtype_of(x), ", but is ", dtype_of(*bias_), " of shape ",
          shape_of(*bias_), ".");
    check_same_device("bias", *bias_, "x", x);
    bias = as_contiguous(*bias_);
  }

  template <typename T>
  ActivationPad<T> arguments(const std::optional<Tensor>& cotangent, const Tensor& x,
                             const Tensor& out) const {
    return {static_cast<const T*>(x.data_ptr()),
            strides_of(x),
            data_of<T>(cotangent),
            strides_of(cotangent),
            activation.has_value(),
            static_cast<Activation>(activation.value_or(0)),
            data_of<Accumulate<T>>(bias),
            static_cast<T*>(out.data_ptr()),
            padded};
  }

  std::optional<int64_t> activation;
  std::optional<Tensor> bias;
  Padded padded;
};

}  // namespace sda_fast
