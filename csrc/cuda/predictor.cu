#include "../kernels/predictor.h"

#include <torch/csrc/stable/library.h>

#include "launch.h"

namespace sda_fast::cuda {
namespace {

// All dense and in the same order; out may be x.
void run(const Launch& launch, const Tensor& x, const Tensor& eps, double r, double b,
         const Tensor& out) {
  if (x.numel() == 0) return;
  dispatch(x, [&]<typename T>(T) {
    const Predictor<T> args = {
        static_cast<const T*>(x.data_ptr()), static_cast<const T*>(eps.data_ptr()),
        static_cast<T*>(out.data_ptr()),     x.numel(),
        static_cast<Accumulate<T>>(r),       static_cast<Accumulate<T>>(b)};
    const bool aligned = is_aligned(args.x) && is_aligned(args.eps) && is_aligned(args.out);
    const auto kernel = aligned ? predictor_kernel<T, true> : predictor_kernel<T, false>;
    // Floor: 3 sizeof(T) bytes an element: x, eps and out, once each.
    launch("predictor", kernel, blocks_for(args.size, 4 * kThreads), kThreads, 0, args);
  });
}

}  // namespace

Tensor predictor(const Tensor& x, const Tensor& eps, double r, double b) {
  check_state("x", x, 0);
  check_like("eps", eps, "x", x);
  const Launch launch(x);
  const Tensor out = allocate_like(x);
  run(launch, ordered_as(out, x), ordered_as(out, eps), r, b, out);
  return out;
}

void predictor_(const Tensor& x, const Tensor& eps, double r, double b) {
  check_state("x", x, 0);
  check_like("eps", eps, "x", x);
  const Launch launch(x);
  InPlace target(x, "x", true);
  run(launch, target.work, target.beside(eps), r, b, target.work);
  target.finish();
}

}  // namespace sda_fast::cuda

SDA_FAST_CUDA_IMPL(m) {
  m.impl("predictor", TORCH_BOX(&sda_fast::cuda::predictor));
  m.impl("predictor_", TORCH_BOX(&sda_fast::cuda::predictor_));
}
