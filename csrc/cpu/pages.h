#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace sda_fast::cpu {

// A new tensor that is about to be written as a whole, its memory in huge pages where the system
// gives them to those who ask: to map fresh memory by 4 kB takes several times as long as to fill
// it. Only whole huge pages are asked for, so that the tensor takes no more memory than before.
inline torch::stable::Tensor in_huge_pages(torch::stable::Tensor t) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t{1} << 21;
  const auto begin = reinterpret_cast<uintptr_t>(t.data_ptr());
  const uintptr_t end = begin + static_cast<uintptr_t>(t.numel()) * t.element_size();
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage, last = end / kPage * kPage;
  // advice: where it is not taken, all is as it was
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  return t;
}

}  // namespace sda_fast::cpu
