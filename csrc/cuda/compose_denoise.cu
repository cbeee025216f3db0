#include "../kernels/compose_denoise.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../terms.h"
#include "launch.h"

namespace sda_fast::cuda {
namespace {

// Floor: (3 length + rows) row sizeof(T) bytes a trajectory: x, eps and out, and the windows' rows
// of non-zero weight, once each.
template <typename T, typename Weight>
void run(const Launch& launch, const ComposeDenoise<T, Weight>& args) {
  const int64_t total = args.compose.batch * args.compose.length * args.compose.row;
  launch("compose_denoise", compose_denoise_kernel<T, Weight>, blocks_for(total), kThreads, 0,
         args);
}

}  // namespace

std::tuple<Tensor, Tensor> compose_denoise(const Tensor& windows, const Tensor& start,
                                           const Tensor& weight, const Tensor& x, double mu,
                                           double sigma) {
  check_state("windows", windows, 3);
  check_state("x", x, 3);
  check_plan(start, weight, "windows", windows);
  const int64_t length = x.size(1);
  check_composed(x, windows, check_windows(windows, weight, length));
  const Launch launch(windows);
  const Tensor rows = with_rows(windows, 2);
  const Tensor starts = as_contiguous(start);
  const Tensor weights = as_contiguous(weight);

  const Tensor eps = allocate(x, sizes({}, x, 0), x.scalar_type());
  const Tensor out = allocate(x, sizes({}, x, 0), x.scalar_type());
  const Terms terms = denoise_terms(as_contiguous(x), eps, mu, sigma);
  if (x.numel() == 0) return {eps, out};

  dispatch(x, [&]<typename T>(T) {
    const Linear<T> denoise = linear_args<T>(terms, out);
    const Compose<T> c = {static_cast<const T*>(rows.data_ptr()),
                          static_cast<const int64_t*>(starts.data_ptr()),
                          static_cast<const int8_t*>(weights.data_ptr()),
                          static_cast<T*>(eps.data_ptr()),
                          x.size(0),
                          length,
                          weight.size(0),
                          weight.size(1),
                          size_from(x, 2),
                          step_along(rows, 0),
                          step_along(rows, 1)};
    const Accumulate<T> r = denoise.weights[0], b = denoise.weights[1];
    if (c.row % 4 == 0 && c.batch_stride % 4 == 0 && c.window_stride % 4 == 0 &&
        is_aligned(c.windows) && is_aligned(denoise.terms[0]) && is_aligned(c.out) &&
        is_aligned(denoise.out)) {
      const Compose<Quad<T>> quads = {reinterpret_cast<const Quad<T>*>(c.windows),
                                      c.start,
                                      c.weight,
                                      reinterpret_cast<Quad<T>*>(c.out),
                                      c.batch,
                                      c.length,
                                      c.count,
                                      c.window,
                                      c.row / 4,
                                      c.batch_stride / 4,
                                      c.window_stride / 4};
      run<Quad<T>, Accumulate<T>>(launch, {quads,
                                           reinterpret_cast<const Quad<T>*>(denoise.terms[0]),
                                           reinterpret_cast<Quad<T>*>(denoise.out),
                                           {r, b}});
    } else {
      run<T, Accumulate<T>>(launch, {c, denoise.terms[0], denoise.out, {r, b}});
    }
  });
  return {eps, out};
}

}  // namespace sda_fast::cuda

SDA_FAST_CUDA_IMPL(m) { m.impl("compose_denoise", TORCH_BOX(&sda_fast::cuda::compose_denoise)); }
