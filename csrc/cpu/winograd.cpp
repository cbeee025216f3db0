#include "../kernels/winograd.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <optional>
#include <vector>

#include "fields.h"
#include "loops.h"
#include "parallel.h"
#include "room.h"

namespace sda_fast::cpu {
namespace {

// Of an item, a multiple of the rows that kernels multiply. A large kernel is read from memory, and
// by fewer items.
int64_t most_tiles(int64_t inputs) { return inputs < 256 ? 24 : 48; }

// Multiply-adds that are done before another thread has started.
constexpr int64_t kLeastProducts = int64_t{1} << 18;

// (B, C, H, W) as (B, H, W, C), where it lies.
Tensor channels_last(const Tensor& t) {
  return torch::stable::transpose(torch::stable::transpose(t, 1, 2), 2, 3);
}

struct Operands {
  Operands(const Tensor& x, const Tensor& kernel_, const std::optional<Tensor>& bias_,
           const std::vector<int64_t>& padding) {
    check_field("x", x);
    check(x.scalar_type() == ScalarType::Float, "x must be float32, but is ", dtype_of(x), ".");
    check_points(x);
    check(kernel_.scalar_type() == ScalarType::Float && kernel_.dim() == 4 &&
              (kernel_.size(0) == 36 || kernel_.size(0) == 6) && kernel_.size(2) == x.size(1) &&
              kernel_.size(3) == kAbreast && x.size(1) % kAbreast == 0,
          "kernel must be float32 of shape (36 or 6, outputs / 16, inputs, 16) for the ", x.size(1),
          " channels of x, a multiple of 16, but is ", dtype_of(kernel_), " of shape ",
          shape_of(kernel_), ".");
    check(kernel_.size(1) >= 1 && kernel_.size(1) <= kMostChannels / kAbreast,
          "kernel must have 16 to ", kMostChannels, " outputs, but has shape ", shape_of(kernel_),
          ".");
    check_same_device("kernel", kernel_, "x", x);
    const std::array<int64_t, 2> points = {kernel_.size(0) == 6 ? 1 : 3, 3};
    check_trailing("padding", padding, 2);
    for (int64_t d = 0; d < 2; ++d) {
      check(
          padding[d] >= 0 && padding[d] < points[d] && x.size(2 + d) + 2 * padding[d] >= points[d],
          "padding must be less than the ", points[0], " x ", points[1],
          " points of the kernel and leave x as wide as it, but is ", list_of(padding),
          " for shape ", shape_of(x), ".");
    }
    kernel = as_contiguous(kernel_);
    source = with_rows(channels_last(x), 3);

    args = {};
    args.kernel = static_cast<const float*>(kernel.data_ptr());
    args.batch = x.size(0);
    args.inputs = x.size(1);
    args.panels = kernel.size(1);
    args.in_rows = x.size(2);
    args.in_columns = x.size(3);
    args.rows = x.size(2) + 2 * padding[0] - (points[0] - 1);
    args.columns = x.size(3) + 2 * padding[1] - (points[1] - 1);
    args.pad_rows = padding[0];
    args.pad_columns = padding[1];
    args.lines = points[0] == 1;

    if (!bias_) return;
    check(bias_->scalar_type() == ScalarType::Float && bias_->dim() == 1 &&
              bias_->size(0) == args.panels * kAbreast,
          "bias must be float32 of shape (", args.panels * kAbreast, "), but is ", dtype_of(*bias_),
          " of shape ", shape_of(*bias_), ".");
    check_same_device("bias", *bias_, "x", x);
    bias = as_contiguous(*bias_);
    args.bias = static_cast<const float*>(bias->data_ptr());
  }

  // For the result, its channels last.
  Tensor allocate() const {
    const int64_t b = args.batch, c = args.panels * kAbreast, h = args.rows, w = args.columns;
    return allocate_strided(source, std::vector<int64_t>{b, c, h, w},
                            std::vector<int64_t>{h * w * c, 1, w * c, c});
  }

  // Writes to (B, H, W, C), contiguous, or adds to it.
  void run(const Tensor& out, bool add) {
    args.x = static_cast<const float*>(source.data_ptr());
    args.x_strides = {source.stride(0), 1, source.stride(1), source.stride(2)};
    args.out = static_cast<float*>(out.data_ptr());
    args.add = add;

    const int64_t tiles = portable::winograd_tiles(args);
    if (tiles == 0) return;
    const int64_t products =
        portable::winograd::places(args) * args.inputs * args.panels * kAbreast;  // of a tile
    const int64_t useful = std::max<int64_t>(1, tiles * products / kLeastProducts);
    const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), useful);

    // as many blocks of tiles for each thread; where these are too few, parts of the outputs
    const int64_t most = most_tiles(args.inputs);
    int64_t blocks = (tiles + most - 1) / most;
    if (blocks >= threads) blocks = (blocks + threads - 1) / threads * threads;
    args.tiles = (tiles + blocks - 1) / blocks;
    blocks = (tiles + args.tiles - 1) / args.tiles;
    args.parts = std::min((threads + blocks - 1) / blocks, (args.panels + 1) / 2);

    const int64_t items = blocks * args.parts;
    std::atomic<int64_t> next = 0;
    parallel(std::min(items, threads), 1, [&](int64_t, int64_t) {
      static thread_local Room room;
      float* const scratch = room.floats(sda_fast::tiles().winograd_scratch(args));
      for (int64_t item = next++; item < items; item = next++) {
        sda_fast::tiles().winograd_run(args, scratch, item);
      }
    });
  }

  Winograd args;
  Tensor kernel, source;
  std::optional<Tensor> bias;
};

}  // namespace

Tensor winograd(const Tensor& x, const Tensor& kernel, const std::optional<Tensor>& bias,
                const std::vector<int64_t>& padding) {
  Operands of(x, kernel, bias, padding);
  const Tensor out = of.allocate();
  of.run(out, false);
  return out;
}

void winograd_(const Tensor& onto, const Tensor& x, const Tensor& kernel,
               const std::optional<Tensor>& bias, const std::vector<int64_t>& padding) {
  Operands of(x, kernel, bias, padding);
  check_field("onto", onto);
  check(onto.scalar_type() == ScalarType::Float && onto.size(0) == of.args.batch &&
            onto.size(1) == of.args.panels * kAbreast && onto.size(2) == of.args.rows &&
            onto.size(3) == of.args.columns,
        "onto must be float32 of shape (", of.args.batch, ", ", of.args.panels * kAbreast, ", ",
        of.args.rows, ", ", of.args.columns, "), but is ", dtype_of(onto), " of shape ",
        shape_of(onto), ".");
  check_same_device("onto", onto, "x", x);
  InPlace target(channels_last(onto), "onto");
  if (overlap(target.work, of.source)) of.source = torch::stable::clone(of.source);
  of.run(target.work, true);
  target.finish();
}

}  // namespace sda_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(sda_fast, CPU, m) {
  m.impl("winograd", TORCH_BOX(&sda_fast::cpu::winograd));
  m.impl("winograd_", TORCH_BOX(&sda_fast::cpu::winograd_));
}
