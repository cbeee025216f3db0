#include "../kernels/compose_denoise.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../terms.h"
#include "compose.h"

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
  check_state("x", x, 3);
  const ComposeOperands of(windows, start, weight, x.size(1));
  check_composed(x, windows, of.channels);
  const Launch launch(windows);
  const Tensor eps = allocate(x, sizes({}, x, 0), x.scalar_type());
  const Tensor out = allocate(x, sizes({}, x, 0), x.scalar_type());
  const Terms terms = denoise_terms(as_contiguous(x), eps, mu, sigma);
  if (x.numel() == 0) return {eps, out};

  dispatch(x, [&]<typename T>(T) {
    const Linear<T> denoise = linear_args<T>(terms, out);
    const Compose<T> c = compose_args<T>(of, eps);
    const Accumulate<T> r = denoise.weights[0], b = denoise.weights[1];
    if (has_quads(c) && is_aligned(denoise.terms[0]) && is_aligned(denoise.out)) {
      run<Quad<T>, Accumulate<T>>(launch, {in_quads(c),
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
