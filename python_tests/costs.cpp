// Runs a kernel of csrc/kernels on some thousands of elements, for valgrind to count instructions:
//
//     costs KERNEL ELEMENTS

#include <cstdlib>
#include <cstring>
#include <vector>

#include "../csrc/kernels/activation_pad.h"
#include "../csrc/kernels/compose.h"
#include "../csrc/kernels/gather.h"
#include "../csrc/kernels/langevin.h"
#include "../csrc/kernels/linear.h"
#include "../csrc/kernels/mlp_score.h"
#include "../csrc/kernels/norm_pad.h"
#include "../csrc/kernels/philox_normal.h"
#include "../csrc/kernels/residual.h"
#include "../csrc/kernels/winograd.h"

using namespace sda_fast;

// Not main's, which is compiled as what runs once.
__attribute__((noinline)) void run(const Linear<float>& l) {
  SDA_FAST_VARIANT::linear(l, 0, l.size);
}

__attribute__((noinline)) void run(const PhiloxNormal<float>& p) {
  SDA_FAST_VARIANT::philox_normal(p, 0,
                                  (p.size + SDA_FAST_VARIANT::kRun - 1) / SDA_FAST_VARIANT::kRun);
}

__attribute__((noinline)) void run(const Gather<float>& g) {
  SDA_FAST_VARIANT::gather(g, 0, g.count);
}

__attribute__((noinline)) void run(const Compose<float>& c, const int64_t* only) {
  SDA_FAST_VARIANT::compose(c, only, 0, c.length);
}

__attribute__((noinline)) void run(const Langevin<float>& l) {
  const int64_t blocks = SDA_FAST_VARIANT::langevin_blocks(l.size);
  std::vector<double> sums(blocks);
  Scales scales;
  SDA_FAST_VARIANT::langevin_sums(l, sums.data(), 0, blocks);
  SDA_FAST_VARIANT::langevin_reduce(l, sums.data(), &scales);
  SDA_FAST_VARIANT::langevin(l, &scales, 0, blocks);
}

__attribute__((noinline)) void run(const Residual<float>& r) {
  SDA_FAST_VARIANT::residual(r, 0, r.size);
}

__attribute__((noinline)) void run(const NormPad<float>& n) {
  SDA_FAST_VARIANT::norm_pad(n, 0, n.padded.height);
}

__attribute__((noinline)) void run(const ActivationPad<float>& a) {
  SDA_FAST_VARIANT::activation_pad(a, 0, a.padded.height);
}

__attribute__((noinline)) void run(const MlpScore& m, bool vjp, float* scratch) {
  SDA_FAST_VARIANT::mlp_run(m, vjp, scratch, 0, SDA_FAST_VARIANT::mlp_tiles(m));
}

__attribute__((noinline)) void run(const Winograd& w, float* scratch) {
  const int64_t items = (SDA_FAST_VARIANT::winograd_tiles(w) + w.tiles - 1) / w.tiles;
  for (int64_t item = 0; item < items; ++item) SDA_FAST_VARIANT::winograd_run(w, scratch, item);
}

// For a kernel that works in scratch, of so many floats.
template <typename F>
void with_scratch(int64_t floats, const F& f) {
  const size_t bytes = (4 * static_cast<size_t>(floats) + 63) / 64 * 64;
  auto* scratch = static_cast<float*>(std::aligned_alloc(64, bytes));
  f(scratch);
  std::free(scratch);
}

constexpr int64_t kWindow = 5, kFeatures = 3, kWidth = 64;  // of the network

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const char* kernel = argv[1];
  const auto is = [&](const char* name) { return std::strcmp(kernel, name) == 0; };
  const int64_t n = std::atoll(argv[2]);
  std::vector<float> x(2 * n + 4, 0.5f), eps(n, 0.25f), out(5 * n);
  std::vector<int64_t> start(n), none(n, -1);
  std::vector<int8_t> weight(5 * n, 1);
  for (int64_t i = 0; i < n; ++i) start[i] = i;

  if (is("predictor")) {
    run(Linear<float>{{x.data(), eps.data()}, {0.9f, -0.3f}, out.data(), n, 2});
  } else if (is("philox_normal")) {
    run(PhiloxNormal<float>{out.data(), 1, n, {}, 0});
  } else if (is("gather")) {  // windows of 5 states of one number
    run(Gather<float>{x.data(), start.data(), weight.data(), out.data(), 1, n + 4, n, 5, 1, 0, 1});
  } else if (is("compose")) {  // states of 16 numbers, each from two windows of 2
    const int64_t count = n / 16 - 1;
    run(Compose<float>{x.data(), start.data(), weight.data(), out.data(), 1, count + 1, count, 2,
                       16, 0, 32},
        none.data());
  } else if (is("langevin")) {
    run(Langevin<float>{x.data(), eps.data(), out.data(), 1, n, 0.1, 0.5, {}, 0});
  } else if (is("residual")) {
    const float std = 0.1f, gamma = 0.01f;
    run(Residual<float>{x.data(), eps.data(), &std, &gamma, out.data(), 1, n, true, true, 0.5f});
  } else if (is("norm_pad") || is("activation_pad")) {  // of 32 channels, 16 columns wide
    const Padded padded = {1, 32, n / 512, 16, 1, 1, 1, 1};
    const FieldStrides strides = {n, 1, 512, 32};
    std::vector<float> padding(32 * (n / 512 + 2) * 18), scale(n / 32);
    if (is("norm_pad")) {
      run(NormPad<float>{x.data(), strides, nullptr, 0, 1e-5f, padding.data(), scale.data(),
                         padded});
    } else {
      run(ActivationPad<float>{x.data(),
                               strides,
                               nullptr,
                               {},
                               true,
                               Activation::kSiLU,
                               nullptr,
                               padding.data(),
                               padded});
    }
    out[0] = padding[0];
  } else if (is("mlp_score") || is("mlp_score_vjp")) {  // n / 16 windows, two blocks
    const int64_t count = n / 16;
    const int64_t widths[] = {kWidth, kWindow * kFeatures};
    const std::vector<float> weights(6 * kWidth * kWidth, 0.01f);
    MlpScore m = {};
    m.x = m.cotangent = x.data();
    m.start = start.data();
    m.mask = m.weight = weight.data();
    m.bias = m.weights = m.transposed = weights.data();
    m.widths = widths;
    m.depth = 2;
    m.batch = 1;
    m.length = count + kWindow - 1;
    m.features = kFeatures;
    m.count = m.chunk = count;
    m.window = kWindow;
    m.activation = Activation::kSiLU;
    m.out = out.data();
    const bool vjp = is("mlp_score_vjp");
    with_scratch(SDA_FAST_VARIANT::mlp_scratch(m, vjp),
                 [&](float* scratch) { run(m, vjp, scratch); });
  } else if (is("winograd")) {  // fields of 32 channels, 16 columns wide
    const std::vector<float> weights(36 * 32 * 32, 0.01f);
    Winograd w = {};
    w.x = x.data();
    w.x_strides = {n, 1, 18 * 32, 32};
    w.kernel = weights.data();
    w.out = out.data();
    w.batch = 1;
    w.inputs = 32;
    w.panels = 2;
    w.rows = n / 512;
    w.columns = 16;
    w.in_rows = w.rows + 2;
    w.in_columns = 18;
    w.tiles = 24;
    w.parts = 1;
    with_scratch(SDA_FAST_VARIANT::winograd_scratch(w), [&](float* scratch) { run(w, scratch); });
  } else if (!is("nothing")) {
    return 2;
  }
  return out[0] == 12345.0f;  // what was written is used
}
