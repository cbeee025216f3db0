#include "linear.h"

#include <utility>

#include "loops.h"
#include "pages.h"
#include "parallel.h"

namespace sda_fast::cpu {
namespace {

// All dense and in the same order.
void run(const Terms& terms, const Tensor& out) {
  dispatch(out, [&]<typename T>(T) {
    const Linear<T> args = linear_args<T>(terms, out);
    for_items(args.size, 1,
              [&](int64_t begin, int64_t end) { loops_of<T>().linear(args, begin, end); });
  });
}

}  // namespace

Tensor linear(Terms terms) {
  const Tensor out = allocate_like(terms.tensors[0]);
  run(ordered_as(out, std::move(terms)), out);
  return out;
}

void linear_(const char* name, Terms terms) {
  InPlace target(terms.tensors[0], name, true);
  run(in_place(std::move(terms), target), target.work);
  target.finish();
}

}  // namespace sda_fast::cpu
