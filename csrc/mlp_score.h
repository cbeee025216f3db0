#pragma once

// What the residual MLP asks of its arguments, on every device.

#include "checks.h"
#include "kernels/mlp_score.h"

namespace sda_fast {

// How a device wants the weights packed.
struct MlpPacking {
  int64_t padded(int64_t outputs) const { return (outputs + pad - 1) / pad * pad; }

  // The floats that a linear map takes.
  int64_t map(int64_t inputs, int64_t outputs, bool bias) const {
    return matrix(inputs, padded(outputs)) + (bias ? padded(outputs) : 0);
  }

  // Of the first map, whose bias is given apart, and of what follows it.
  int64_t forward(int64_t inputs, const std::vector<int64_t>& widths) const {
    int64_t size = map(inputs, widths[0], false);
    for (size_t d = 0; d < widths.size(); ++d) {
      if (d > 0 && widths[d] != widths[d - 1]) size += map(widths[d - 1], widths[d], true);
      size += 2 * map(widths[d], widths[d], true);
    }
    return size;
  }

  int64_t transposed(int64_t inputs, const std::vector<int64_t>& widths) const {
    int64_t size = map(widths[0], inputs, false);
    for (size_t d = 0; d < widths.size(); ++d) {
      if (d > 0 && widths[d] != widths[d - 1]) size += map(widths[d], widths[d - 1], false);
      size += 2 * map(widths[d], widths[d], false);
    }
    return size;
  }

  int64_t pad;                                        // outputs are padded to multiples of it
  int64_t (*matrix)(int64_t inputs, int64_t padded);  // the floats of a matrix
};

inline const float* floats(const Tensor& t) { return static_cast<const float*>(t.data_ptr()); }

inline void check_float(const char* name, const Tensor& t, int64_t dim) {
  check(t.scalar_type() == ScalarType::Float && t.dim() == dim && t.is_contiguous(), name,
        " must be float32, contiguous and of ", dim, " dimension(s), but is ", dtype_of(t),
        " of shape ", shape_of(t), ".");
}

inline void check_packed(const char* name, const Tensor& t, int64_t size, const Tensor& x) {
  check_float(name, t, 1);
  check(t.numel() == size, name, " must have ", size, " elements for these widths, but has ",
        t.numel(), ".");
  check_same_device(name, t, "x", x);
}

// The plan's numbers are not looked at.
inline void check_windows_of(const Tensor& x, const Tensor& start, const Tensor& mask,
                             const Tensor& weight) {
  check_float("x", x, 3);
  check_plan(start, mask, "x", x);
  check_plan(start, weight, "x", x);
  check(mask.size(1) == weight.size(1), "weight must have the shape of mask, ", shape_of(mask),
        ", but has ", shape_of(weight), ".");
}

// The arguments that a forward evaluation needs, of windows that were checked.
inline MlpScore mlp_arguments(const Tensor& x, const Tensor& start, const Tensor& mask,
                              const Tensor& weight, const Tensor& bias, const Tensor& weights,
                              const std::vector<int64_t>& widths, int64_t activation,
                              bool length_aware, bool bfloat16, const MlpPacking& packing) {
  check_float("bias", bias, 2);
  check_same_device("bias", bias, "x", x);

  const int64_t window = mask.size(1), features = x.size(2);
  check(!widths.empty() && *std::min_element(widths.begin(), widths.end()) > 1 &&
            widths.back() == window * features,
        "widths must be above 1 and end with window times features, ", window * features, ".");
  const int64_t padded = packing.padded(widths[0]);
  check(bias.size(1) == padded && (bias.size(0) == 1 || bias.size(0) == x.size(0)),
        "bias must have shape (1 or ", x.size(0), ", ", padded, "), but has ", shape_of(bias), ".");
  check(activation >= 0 && activation < 5, "activation must be from 0 to 4, but is ", activation,
        ".");
  const int64_t inputs = window * (features + (length_aware ? 1 : 0));
  check_packed("weights", weights, packing.forward(inputs, widths), x);

  return {floats(x),
          static_cast<const int64_t*>(start.data_ptr()),
          static_cast<const int8_t*>(mask.data_ptr()),
          floats(bias),
          bias.size(0) == 1 ? 0 : bias.size(1),
          floats(weights),
          nullptr,
          widths.data(),
          static_cast<int64_t>(widths.size()),
          x.size(0),
          x.size(1),
          features,
          mask.size(0),
          window,
          bfloat16,
          length_aware,
          static_cast<Activation>(activation),
          nullptr,
          static_cast<const int8_t*>(weight.data_ptr()),
          0,
          0,
          nullptr,
          nullptr,
          0};
}

// And what the vector-Jacobian product needs beside.
inline void mlp_arguments_vjp(MlpScore& args, const Tensor& cotangent, const Tensor& transposed,
                              const Tensor& x, const std::vector<int64_t>& widths,
                              const MlpPacking& packing) {
  const int64_t size = packing.transposed(args.window * args.features, widths);
  check_packed("transposed", transposed, size, x);
  args.transposed = floats(transposed);
  args.cotangent = floats(cotangent);
}

// Where what the way back needs is kept, with shape (windows, `numbers` of each).
inline void mlp_keep(MlpScore& args, const Tensor& kept, int64_t numbers, uintptr_t alignment) {
  check_float("kept", kept, 2);
  check(kept.size(1) == numbers, "kept must have ", numbers, " columns for these widths, but has ",
        "shape ", shape_of(kept), ".");
  args.kept = static_cast<float*>(kept.data_ptr());
  check(reinterpret_cast<uintptr_t>(args.kept) % alignment == 0, "kept must be aligned to ",
        alignment, " bytes.");
  args.kept_rows = kept.size(0);
}

}  // namespace sda_fast
