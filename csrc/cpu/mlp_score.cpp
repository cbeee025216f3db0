#include "../mlp_score.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <tuple>
#include <vector>

#include "isa.h"
#include "loops.h"
#include "pages.h"
#include "parallel.h"
#include "plan.h"
#include "room.h"

namespace sda_fast::cpu {
namespace {

// What windows' results take at the most before they are composed.
constexpr int64_t kChunkBytes = int64_t{1} << 22;

MlpPacking packing(bool bfloat16) {
  if (bfloat16)
    return {8, [](int64_t inputs, int64_t padded) { return (inputs + 1) / 2 * padded; }};
  return {8, [](int64_t inputs, int64_t padded) { return inputs * padded; }};
}

struct Network {
  Network(const Tensor& x, const Tensor& start, const Tensor& mask, const Tensor& weight,
          const Tensor& bias, const Tensor& weights, const std::vector<int64_t>& widths,
          int64_t activation, bool length_aware, bool bfloat16, bool tf32) {
    check(!bfloat16 || tiles().bfloat16, "bfloat16 must be false: the instruction set in use, ",
          isa(), ", has no bfloat16 products.");
    check(!tf32, "tf32 must be false: the CPU has no TF32 products.");
    check_windows_of(x, start, mask, weight);
    check_plan_values(start, mask, x.size(1));
    check_plan_values(start, weight, x.size(1));
    args = mlp_arguments(x, start, mask, weight, bias, weights, widths, activation, length_aware,
                         bfloat16, packing(bfloat16));
  }

  void keep(const Tensor& kept) { mlp_keep(args, kept, portable::mlp_kept(args), 64); }

  // Runs the network a chunk of windows at a time, and adds each chunk's results, times `sign`, to
  // their rows of the trajectory: in order of the windows, whatever the chunks.
  void run(bool vjp, const int8_t* sign, const Tensor& out) {
    const int64_t columns = args.window * args.features;
    const int64_t most = std::max<int64_t>(1, kChunkBytes / 4 / columns / args.batch);
    static thread_local Room results;
    args.out = results.floats(std::min(most, args.count) * args.batch * columns);
    auto* composed = static_cast<float*>(out.data_ptr());
    std::fill_n(composed, out.numel(), 0.0f);

    for (args.first = 0; args.first < args.count; args.first += most) {
      args.chunk = std::min(most, args.count - args.first);

      // tiles are taken in turn, so that a thread that is held up leaves more of them to the others
      const int64_t count = tiles().mlp_tiles(args);
      const auto threads = static_cast<int64_t>(torch::stable::get_num_threads());
      std::atomic<int64_t> next = 0;
      parallel(std::min(count, threads), 1, [&](int64_t, int64_t) {
        static thread_local Room room;
        float* const scratch = room.floats(tiles().mlp_scratch(args, vjp));
        for (int64_t tile = next++; tile < count; tile = next++) {
          tiles().mlp_run(args, vjp, scratch, tile, tile + 1);
        }
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
                                     bool length_aware, bool bfloat16, bool tf32,
                                     int64_t kept_rows) {
  const Tensor states = as_contiguous(x);
  const Tensor starts = as_contiguous(start);
  const Tensor masks = as_contiguous(mask);
  const Tensor signs = as_contiguous(weight);
  Network network(states, starts, masks, signs, bias, weights, widths, activation, length_aware,
                  bfloat16, tf32);

  check(kept_rows >= 0, "kept_rows must be at least 0, but is ", kept_rows, ".");
  const int64_t numbers = portable::mlp_kept(network.args);
  const Tensor kept =
      kept_rows > 0 ? allocate_again(kept_rows, numbers) : allocate(x, {0, numbers});
  if (kept_rows > 0) network.keep(kept);

  const Tensor out = allocate(x, x.sizes());
  if (out.numel() > 0) network.run(false, network.args.weight, out);
  return {out, kept};
}

Tensor mlp_score_vjp(const Tensor& cotangent, const Tensor& x, const Tensor& start,
                     const Tensor& mask, const Tensor& weight, const Tensor& bias,
                     const Tensor& weights, const Tensor& transposed, const Tensor& kept,
                     std::vector<int64_t> widths, int64_t activation, bool length_aware,
                     bool bfloat16, bool tf32) {
  check_like("cotangent", cotangent, "x", x);
  const Tensor states = as_contiguous(x);
  const Tensor cotangents = as_contiguous(cotangent);
  const Tensor starts = as_contiguous(start);
  const Tensor masks = as_contiguous(mask);
  const Tensor signs = as_contiguous(weight);
  Network network(states, starts, masks, signs, bias, weights, widths, activation, length_aware,
                  bfloat16, tf32);

  mlp_arguments_vjp(network.args, cotangents, transposed, x, widths, packing(bfloat16));
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
