#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "../checks.h"

// Memory that is kept from call to call. What malloc is given back of this size it gives back to
// the system, which maps it anew page by page: a tenth of the time of a guided step.

namespace sda_fast::cpu {

// Aligned to cache lines. What was in it is gone where it grows.
class Room {
 public:
  float* floats(int64_t count) {
    if (count > count_) {
      count_ = 0;
      memory_.reset();
      const size_t bytes = (static_cast<size_t>(count) * sizeof(float) + 63) / 64 * 64;
      memory_.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
      check(memory_ != nullptr, "no memory for ", bytes, " bytes of scratch.");
      count_ = count;
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> memory_;
  int64_t count_ = 0;
};

// A new tensor of float32 whose memory, once it is done with, the next one takes.
inline torch::stable::Tensor allocate_again(int64_t rows, int64_t columns) {
  struct alignas(64) Block {
    int64_t count;  // of the floats behind it
  };
  static std::atomic<Block*> spare{nullptr};

  int64_t count = 0, bytes = 0;
  const bool overflow = __builtin_mul_overflow(rows, columns, &count) ||
                        __builtin_mul_overflow(count, int64_t{sizeof(float)}, &bytes);
  Block* block = spare.exchange(nullptr);
  if (block == nullptr || block->count < count || overflow) {
    std::free(block);
    const size_t size = sizeof(Block) + (static_cast<size_t>(bytes) + 63) / 64 * 64;
    block = overflow ? nullptr : static_cast<Block*>(std::aligned_alloc(64, size));
    check(block != nullptr, "no memory for ", rows, " times ", columns, " numbers.");
    block->count = count;
  }
  return torch::stable::from_blob(block + 1, {rows, columns}, {columns, 1},
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU),
                                  torch::headeronly::ScalarType::Float, [](void* data) {
                                    std::free(spare.exchange(static_cast<Block*>(data) - 1));
                                  });
}

}  // namespace sda_fast::cpu
