#pragma once

// The matrix instruction mma.sync in plain C++, behind the wrapper of kernels/matrix.h.

#include "cuda.h"

namespace sda_fast::emulate {

struct MatrixFragments {
  uint32_t a[4], b[2];
};

// The factor that a register holds as its number e of kPacked: bfloat16 in its halves, or one TF32.
template <int kPacked>
float factor(uint32_t bits, int e) {
  return std::bit_cast<float>(kPacked == 1 ? bits & ~0x1FFFu : bits >> 16 * e << 16);
}

// sums (16, 8) += a (16, 8 kPacked) b (8 kPacked, 8), of which every lane gives and gets a part.
template <int kPacked>
void multiply(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
              std::source_location where = std::source_location::current()) {
  const MatrixFragments mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const Lanes& given = exchange(~0u, std::bit_cast<uintptr_t>(&mine), where);

  const auto of = [&](int lane) -> const MatrixFragments& {
    return *std::bit_cast<const MatrixFragments*>(given.of(lane, where));
  };
  const int g = lane() / 4, q = lane() % 4;
  for (int s = 0; s < 4; ++s) {
    const int column = 2 * q + s % 2;
    for (int half = 0; half < 2; ++half) {
      for (int k = 0; k < 4 * kPacked; ++k) {
        const int other = k / kPacked;
        sums[s] += factor<kPacked>(of(4 * g + other).a[2 * half + s / 2], k % kPacked) *
                   factor<kPacked>(of(4 * column + other).b[half], k % kPacked);
      }
    }
  }
  exchange(~0u, 0, where);  // everybody has read
}

}  // namespace sda_fast::emulate
