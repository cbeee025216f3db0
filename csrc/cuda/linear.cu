#include "linear.h"

namespace sda_fast::cuda {
namespace {

// All dense and in the same order. Floor: (count + 1) sizeof(T) bytes an element: the terms and
// out, once each.
void run(const char* name, const Launch& launch, const Terms& terms, const Tensor& out) {
  if (out.numel() == 0) return;
  dispatch(out, [&]<typename T>(T) {
    const Linear<T> args = linear_args<T>(terms, out);
    with_count<2, kMostTerms>(args.count, [&](auto count) {
      const auto kernel =
          is_aligned(args) ? linear_kernel<T, count(), true> : linear_kernel<T, count(), false>;
      launch(name, kernel, blocks_for(args.size, 4 * kThreads), kThreads, 0, args);
    });
  });
}

}  // namespace

Tensor linear(const char* name, const Terms& terms) {
  const Launch launch(terms.tensors[0]);
  const Tensor out = allocate_like(terms.tensors[0]);
  run(name, launch, ordered_as(out, terms), out);
  return out;
}

void linear_(const char* name, const char* first, const Terms& terms) {
  const Launch launch(terms.tensors[0]);
  InPlace target(terms.tensors[0], first, true);
  run(name, launch, in_place(terms, target), target.work);
  target.finish();
}

}  // namespace sda_fast::cuda
