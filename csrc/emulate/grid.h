#pragma once

// Runs a kernel's threads as fibres, one at a time and in a random order that changes at every
// barrier, so that what is missing a barrier reads what is not there yet.

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>

struct dim3;

namespace sda_fast::emulate {

constexpr size_t kMostShared = 227 * 1024;  // what a kernel may ask for from compute capability 9.0

// Runs `thread` once for each thread of a grid. Throws a std::runtime_error that names the kernel,
// the block and the thread where one misuses the block, the warp or the memory.
void run(const char* kernel, dim3 grid, dim3 block, size_t shared,
         const std::function<void()>& thread);

// Sets the order of the fibres, of all the launches that follow.
void seed(uint64_t number);

// The following are for threads of a kernel.

// Waits for all threads of the block.
void barrier(std::source_location where);

// What the lanes of a warp gave to a collective operation, for those of its mask that still run.
struct Lanes {
  std::array<uint64_t, 32> value;
  uint32_t present;

  uint64_t of(int lane, std::source_location where) const;
  uint32_t ballot() const;
};

// Gives a value to the warp and waits for the other lanes of the mask.
const Lanes& exchange(uint32_t mask, uint64_t value, std::source_location where);

// The block's dynamic shared memory.
void* dynamic_shared();

}  // namespace sda_fast::emulate
