// Runs a kernel of csrc/kernels on some thousands of elements, for valgrind to count instructions:
//
//     costs KERNEL ELEMENTS

#include <cstdlib>
#include <cstring>
#include <vector>

#include "../csrc/kernels/gather.h"
#include "../csrc/kernels/linear.h"
#include "../csrc/kernels/philox_normal.h"

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

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const char* kernel = argv[1];
  const int64_t n = std::atoll(argv[2]);
  std::vector<float> x(n + 4, 0.5f), eps(n, 0.25f), out(5 * n);
  std::vector<int64_t> start(n);
  std::vector<int8_t> weight(5 * n, 1);
  for (int64_t i = 0; i < n; ++i) start[i] = i;

  if (std::strcmp(kernel, "predictor") == 0) {
    run(Linear<float>{{x.data(), eps.data()}, {0.9f, -0.3f}, out.data(), n, 2});
  } else if (std::strcmp(kernel, "philox_normal") == 0) {
    run(PhiloxNormal<float>{out.data(), 1, n, {}, 0});
  } else if (std::strcmp(kernel, "gather") == 0) {  // windows of 5 states of one number
    run(Gather<float>{x.data(), start.data(), weight.data(), out.data(), 1, n + 4, n, 5, 1, 0, 1});
  } else if (std::strcmp(kernel, "nothing") != 0) {
    return 2;
  }
  return out[0] == 12345.0f;  // what was written is used
}
