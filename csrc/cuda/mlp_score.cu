#include "../mlp_score.h"

#include <torch/csrc/stable/library.h>

#include <limits>
#include <tuple>
#include <vector>

#include "mlp_tiles.h"

namespace sda_fast::cuda {
namespace {

int64_t floats_of(int64_t inputs, int64_t padded) { return mlp_pad(inputs) * padded; }
int64_t floats_of_halves(int64_t inputs, int64_t padded) { return mlp_pad(inputs) * padded / 2; }

MlpPacking packing(bool bfloat16) { return {kMatrixPad, bfloat16 ? floats_of_halves : floats_of}; }

struct Network {
  Network(const Launch& launch, const MlpScore& given, const std::vector<int64_t>& widths,
          bool tf32, bool vjp)
      : launch(launch), args(given), tf32(tf32) {
    check(!(args.bfloat16 && tf32), "tf32 must be false where bfloat16 is true.");
    check(args.depth <= kMostDepth, "widths must be at most ", kMostDepth, ", but are ", args.depth,
          ".");
    const int64_t inputs = args.window * (args.features + (args.length_aware ? 1 : 0));
    const int64_t most = std::max(inputs, *std::max_element(widths.begin(), widths.end()));
    check(most <= std::numeric_limits<int16_t>::max() - kMatrixPad,
          "widths and the window must be below 2^15, but one is ", most, ".");
    check(is_aligned(args.weights) && is_aligned(args.bias) && is_aligned(args.transposed),
          "weights, transposed and bias must be aligned to 16 bytes.");

    tile.depth = static_cast<int>(args.depth);
    tile.features = static_cast<int>(args.features);
    tile.window = static_cast<int>(args.window);
    tile.inputs = static_cast<int>(inputs);
    tile.kept_numbers = mlp_pad(tile.depth);
    tile.vjp = vjp;
    for (size_t d = 0; d < widths.size(); ++d) {
      tile.widths[d] = static_cast<int16_t>(widths[d]);
      tile.kept_numbers += 2 * mlp_pad(tile.widths[d]);
      widest = std::max(widest, mlp_pad(tile.widths[d]));
    }
    // so that the rows of what a warp stores lie in other banks
    tile.x_stride = widest + 4;
    const int bytes = std::max(widest, mlp_pad(tile.inputs)) * (args.bfloat16 ? 2 : 4);
    tile.in_bytes = (bytes + 127) / 128 * 128;
  }

  // Runs the network a chunk of windows at a time, and adds each chunk's results, times `sign`, to
  // their rows of the trajectory: in order of the windows, whatever the chunks.
  void run(const int8_t* sign, const Tensor& x, const Tensor& out) {
    const int64_t columns = args.window * args.features;
    const int64_t most = std::max<int64_t>(1, kChunkBytes / 4 / columns / args.batch);
    const int64_t size = std::min(most, args.count) * args.batch * columns;
    const Tensor results = allocate(x, {size}, ScalarType::Float);
    args.out = static_cast<float*>(results.data_ptr());

    for (args.first = 0; args.first == 0 || args.first < args.count; args.first += most) {
      args.chunk = std::min(most, args.count - args.first);
      if (args.chunk > 0) evaluate(x);
      args.kept_rows = 0;  // of the first chunk only

      const Compose<float> c = {args.out,
                                args.start + args.first,
                                sign + args.first * args.window,
                                static_cast<float*>(out.data_ptr()),
                                args.batch,
                                args.length,
                                args.chunk,
                                args.window,
                                args.features,
                                args.chunk * columns,
                                columns};
      auto* const kernel = args.first == 0 ? compose_kernel<float> : compose_more_kernel<float>;
      launch("mlp_score", kernel, blocks_for(out.numel()), kThreads, 0, c);
    }
  }

  void evaluate(const Tensor& x) {
    const auto evaluate = args.bfloat16 ? mlp_tiles_bfloat16
                          : tf32        ? mlp_tiles_tf32
                                        : mlp_tiles_float32;
    check(evaluate(launch, args, tile, widest, x), "widths must be such that a tile fits into the ",
          launch.most_shared(), " bytes of shared memory, but the widest is ", widest, ".");
  }

  const Launch& launch;
  MlpScore args;
  MlpTile tile = {};
  bool tf32;
  int widest = 0;  // padded
};

}  // namespace

std::tuple<Tensor, Tensor> mlp_score(const Tensor& x, const Tensor& start, const Tensor& mask,
                                     const Tensor& weight, const Tensor& bias,
                                     const Tensor& weights, const Tensor& /*transposed*/,
                                     std::vector<int64_t> widths, int64_t activation,
                                     bool length_aware, bool bfloat16, bool tf32,
                                     int64_t kept_rows) {
  const Launch launch(x);
  const Tensor states = as_contiguous(x);
  const Tensor starts = as_contiguous(start);
  const Tensor masks = as_contiguous(mask);
  const Tensor signs = as_contiguous(weight);
  check_windows_of(states, starts, masks, signs);
  const MlpScore args = mlp_arguments(states, starts, masks, signs, bias, weights, widths,
                                      activation, length_aware, bfloat16, packing(bfloat16));
  Network network(launch, args, widths, tf32, false);

  check(kept_rows >= 0, "kept_rows must be at least 0, but is ", kept_rows, ".");
  const Tensor kept = allocate(x, {kept_rows, network.tile.kept_numbers}, ScalarType::Float);
  if (kept_rows > 0) mlp_keep(network.args, kept, network.tile.kept_numbers, 16);

  const Tensor out = allocate(x, sizes({}, x, 0), ScalarType::Float);
  if (out.numel() > 0) network.run(args.weight, x, out);
  return {out, kept};
}

Tensor mlp_score_vjp(const Tensor& cotangent, const Tensor& x, const Tensor& start,
                     const Tensor& mask, const Tensor& weight, const Tensor& bias,
                     const Tensor& weights, const Tensor& transposed, const Tensor& kept,
                     std::vector<int64_t> widths, int64_t activation, bool length_aware,
                     bool bfloat16, bool tf32) {
  check_like("cotangent", cotangent, "x", x);
  const Launch launch(x);
  const Tensor states = as_contiguous(x);
  const Tensor cotangents = as_contiguous(cotangent);
  const Tensor starts = as_contiguous(start);
  const Tensor masks = as_contiguous(mask);
  const Tensor signs = as_contiguous(weight);
  check_windows_of(states, starts, masks, signs);
  MlpScore args = mlp_arguments(states, starts, masks, signs, bias, weights, widths, activation,
                                length_aware, bfloat16, packing(bfloat16));
  mlp_arguments_vjp(args, cotangents, transposed, x, widths, packing(bfloat16));
  Network network(launch, args, widths, tf32, true);
  if (kept.numel() > 0) mlp_keep(network.args, kept, network.tile.kept_numbers, 16);

  const Tensor out = allocate(x, sizes({}, x, 0), ScalarType::Float);
  if (out.numel() > 0) network.run(args.mask, x, out);
  return out;
}

}  // namespace sda_fast::cuda

SDA_FAST_CUDA_IMPL(m) {
  m.impl("mlp_score", TORCH_BOX(&sda_fast::cuda::mlp_score));
  m.impl("mlp_score_vjp", TORCH_BOX(&sda_fast::cuda::mlp_score_vjp));
}
