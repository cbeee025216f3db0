#include <torch/csrc/stable/library.h>

#include "../checks.h"
#include "loops.h"
#include "parallel.h"

namespace sda_fast::cpu {
namespace {

// All dense and in the same order; out may be x.
void run(const Tensor& x, const Tensor& eps, double r, double b, const Tensor& out) {
  dispatch(x, [&]<typename T>(T) {
    const Predictor<T> args = {
        static_cast<const T*>(x.data_ptr()), static_cast<const T*>(eps.data_ptr()),
        static_cast<T*>(out.data_ptr()),     x.numel(),
        static_cast<Accumulate<T>>(r),       static_cast<Accumulate<T>>(b)};
    for_items(args.size, 1,
              [&](int64_t begin, int64_t end) { loops_of<T>().predictor(args, begin, end); });
  });
}

}  // namespace

Tensor predictor(const Tensor& x, const Tensor& eps, double r, double b) {
  check_state("x", x, 0);
  check_like("eps", eps, "x", x);
  const Tensor out = torch::stable::empty_like(x);
  run(ordered_as(out, x), ordered_as(out, eps), r, b, out);
  return out;
}

void predictor_(const Tensor& x, const Tensor& eps, double r, double b) {
  check_state("x", x, 0);
  check_like("eps", eps, "x", x);
  InPlace target(x, "x", true);
  run(target.work, target.beside(eps), r, b, target.work);
  target.finish();
}

}  // namespace sda_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(sda_fast, CPU, m) {
  m.impl("predictor", TORCH_BOX(&sda_fast::cpu::predictor));
  m.impl("predictor_", TORCH_BOX(&sda_fast::cpu::predictor_));
}
