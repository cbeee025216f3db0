#include "../kernels/mlp_score.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <tuple>
#include <vector>

#include "isa.h"
#include "loops.h"
#include "pages.h"
#include "parallel.h"
#include "plan.h"

namespace sda_fast::cpu {
namespace {

// What windows' results take at the most before they are composed.
constexpr int64_t kChunkBytes = int64_t{1} << 22;

using portable::mlp_padded;

const float* floats(const Tensor& t) { return static_cast<const float*>(t.data_ptr()); }

void check_float(const char* name, const Tensor& t, int64_t dim) {
  check(t.scalar_type() == ScalarType::Float && t.dim() == dim && t.is_contiguous(), name,
        " must be float32, contiguous and of ", dim, " dimension(s), but is ", dtype_of(t),
        " of shape ", shape_of(t), ".");
}

// The panels of a linear map, as in kernels/mlp_score.h.
int64_t packed(int64_t inputs, int64_t outputs, bool bias, bool bfloat16) {
  return mlp_padded(outputs) * ((bfloat16 ? (inputs + 1) / 2 : inputs) + (bias ? 1 : 0));
}

struct Network {
  Network(const Tensor& x, const Tensor& start, const Tensor& mask, const Tensor& weight,
          const Tensor& bias, const Tensor& weights, const std::vector<int64_t>& widths,
          int64_t activation, bool length_aware, bool bfloat16) {
    check(!bfloat16 || tiles().bfloat16, "bfloat16 must be false: the instruction set in use, ",
          isa(), ", has no bfloat16 products.");
    check_float("x", x, 3);
    check_plan(start, mask, "x", x);
    check_plan(start, weight, "x", x);
    check(mask.size(1) == weight.size(1), "weight must have the shape of mask, ", shape_of(mask),
          ", but has ", shape_of(weight), ".");
    check_plan_values(start, mask, x.size(1));
    check_plan_values(start, weight, x.size(1));
    check_float("bias", bias, 2);
    check_float("weights", weights, 1);

    const int64_t window = mask.size(1), features = x.size(2);
    check(!widths.empty() && *std::min_element(widths.begin(), widths.end()) > 1 &&
              widths.back() == window * features,
          "widths must be above 1 and end with window times features, ", window * features, ".");
    check(bias.size(1) == mlp_padded(widths[0]) && (bias.size(0) == 1 || bias.size(0) == x.size(0)),
          "bias must have shape (1 or ", x.size(0), ", ", mlp_padded(widths[0]), "), but has ",
          shape_of(bias), ".");
    check(activation >= 0 && activation < 5, "activation must be from 0 to 4, but is ", activation,
          ".");

    int64_t size = packed(window * (features + (length_aware ? 1 : 0)), widths[0], false, bfloat16);
    for (size_t d = 0; d < widths.size(); ++d) {
      if (d > 0 && widths[d] != widths[d - 1])
        size += packed(widths[d - 1], widths[d], true, bfloat16);
      size += 2 * packed(widths[d], widths[d], true, bfloat16);
    }
    check(weights.numel() == size, "weights must have ", size, " elements for these widths, but ",
          "has ", weights.numel(), ".");

    args = {floats(x),
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

  // Where what the way back needs is kept, with shape (windows, floats a window).
  void keep(const Tensor& kept) {
    check_float("kept", kept, 2);
    const int64_t size = portable::mlp_kept(args);
    check(kept.size(1) == size, "kept must have ", size, " columns for these widths, but has ",
          "shape ", shape_of(kept), ".");
    args.kept = static_cast<float*>(kept.data_ptr());
    check((reinterpret_cast<uintptr_t>(args.kept) & 63) == 0, "kept must be aligned to 64 bytes.");
    args.kept_rows = kept.size(0);
  }

  // Runs the network a chunk of windows at a time, and adds each chunk's results, times `sign`, to
  // their rows of the trajectory: in order of the windows, whatever the chunks.
  void run(bool vjp, const int8_t* sign, const Tensor& out) {
    const int64_t columns = args.window * args.features;
    const int64_t most = std::max<int64_t>(1, kChunkBytes / 4 / columns / args.batch);
    std::vector<float> results(std::min(most, args.count) * args.batch * columns);
    auto* composed = static_cast<float*>(out.data_ptr());
    std::fill_n(composed, out.numel(), 0.0f);

    for (args.first = 0; args.first < args.count; args.first += most) {
      args.chunk = std::min(most, args.count - args.first);
      args.out = results.data();

      parallel(tiles().mlp_tiles(args), 1, [&](int64_t begin, int64_t end) {
        const auto bytes = static_cast<size_t>(tiles().mlp_scratch(args, vjp)) * sizeof(float);
        const std::unique_ptr<float, decltype(&std::free)> scratch(
            static_cast<float*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)), &std::free);
        check(scratch != nullptr, "no memory for ", bytes, " bytes of scratch.");
        tiles().mlp_run(args, vjp, scratch.get(), begin, end);
      });

      for_items(args.batch, args.chunk * columns, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) {
          for (int64_t n = 0; n < args.chunk; ++n) {
            const int64_t place = args.first + n;
            float* rows = composed + (b * args.length + args.start[place]) * args.features;
            const float* result = args.out + (b * args.chunk + n) * columns;
            for (int64_t j = 0; j < args.window; ++j) {
              const int8_t weight = sign[place * args.window + j];
              if (weight == 0) continue;
              for (int64_t c = j * args.features; c < (j + 1) * args.features; ++c) {
                rows[c] += weight > 0 ? result[c] : -result[c];
              }
            }
          }
        }
      });
      args.kept_rows = 0;  // of the first chunk only
    }
  }

  MlpScore args;
};

}  // namespace

std::tuple<Tensor, Tensor> mlp_score(const Tensor& x, const Tensor& start, const Tensor& mask,
                                     const Tensor& weight, const Tensor& bias,
                                     const Tensor& weights, const Tensor& /*transposed*/,
                                     std::vector<int64_t> widths, int64_t activation,
                                     bool length_aware, bool bfloat16, int64_t kept_rows) {
  const Tensor states = as_contiguous(x);
  const Tensor starts = as_contiguous(start);
  const Tensor masks = as_contiguous(mask);
  const Tensor signs = as_contiguous(weight);
  Network network(states, starts, masks, signs, bias, weights, widths, activation, length_aware,
                  bfloat16);

  check(kept_rows >= 0, "kept_rows must be at least 0, but is ", kept_rows, ".");
  const std::vector<int64_t> kept_shape = {kept_rows, portable::mlp_kept(network.args)};
  const Tensor kept = allocate(x, kept_shape);
  if (kept_rows > 0) network.keep(kept);

  const Tensor out = allocate(x, x.sizes());
  if (out.numel() > 0) network.run(false, network.args.weight, out);
  return {out, kept};
}

Tensor mlp_score_vjp(const Tensor& cotangent, const Tensor& x, const Tensor& start,
                     const Tensor& mask, const Tensor& weight, const Tensor& bias,
                     const Tensor& weights, const Tensor& transposed, const Tensor& kept,
                     std::vector<int64_t> widths, int64_t activation, bool length_aware,
                     bool bfloat16) {
  check_like("cotangent", cotangent, "x", x);
  check_float("transposed", transposed, 1);
  const Tensor states = as_contiguous(x);
  const Tensor cotangents = as_contiguous(cotangent);
  const Tensor starts = as_contiguous(start);
  const Tensor masks = as_contiguous(mask);
  const Tensor signs = as_contiguous(weight);
  Network network(states, starts, masks, signs, bias, weights, widths, activation, length_aware,
                  bfloat16);

  int64_t size = 0, inputs = x.size(2) * mask.size(1);
  for (const int64_t width : widths) {
    if (&width == widths.data() || width != inputs) size += packed(width, inputs, false, bfloat16);
    size += 2 * packed(width, width, false, bfloat16);
    inputs = width;
  }
  check(transposed.numel() == size, "transposed must have ", size,
        " elements for these widths, but has ", transposed.numel(), ".");
  network.args.transposed = floats(transposed);
  network.args.cotangent = floats(cotangents);
  if (kept.numel() > 0) network.keep(kept);

  const Tensor out = allocate(x, x.sizes());
  if (out.numel() > 0) network.run(true, network.args.mask, out);
  return out;
}

}  // namespace sda_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(sda_fast, CPU, m) {
  m.impl("mlp_score", TORCH_BOX(&sda_fast::cpu::mlp_score));
  m.impl("mlp_score_vjp", TORCH_BOX(&sda_fast::cpu::mlp_score_vjp));
}
