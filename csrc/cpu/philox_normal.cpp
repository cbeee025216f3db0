#include <torch/csrc/stable/library.h>

#include "../checks.h"
#include "loops.h"
#include "parallel.h"

namespace sda_fast::cpu {

void philox_normal_(const Tensor& out, int64_t seed, int64_t step, int64_t correction,
                    int64_t first_sample) {
  check_state("out", out, 1);
  const NoiseKey key = check_noise(out, seed, step, correction, first_sample);
  if (out.numel() == 0) return;

  InPlace target(out, "out");
  dispatch(out, [&]<typename T>(T) {
    const PhiloxNormal<T> args = {static_cast<T*>(target.work.data_ptr()), out.size(0),
                                  size_from(out, 1), key, static_cast<uint32_t>(first_sample)};
    const int64_t runs = (args.size + portable::kRun - 1) / portable::kRun;
    for_items(args.batch * runs, 4 * portable::kRun,
              [&](int64_t begin, int64_t end) { loops_of<T>().philox_normal(args, begin, end); });
  });
  target.finish();
}

}  // namespace sda_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(sda_fast, CPU, m) {
  m.impl("philox_normal_", TORCH_BOX(&sda_fast::cpu::philox_normal_));
}
