#pragma once

// Memory in which an access beyond an array does not go unseen.

#include <cstddef>
#include <string>

namespace sda_fast::emulate {

// Fresh memory is full of it: as floating-point numbers NaN, as integers -1.
constexpr unsigned char kPoison = 0xFF;

// An array that ends `gap` bytes before a page which nothing may touch. What lies on its pages
// beside it is poison.
void* allocate(size_t bytes, size_t gap);

// The gap of an array that begins as arrays of a GPU do, aligned.
constexpr size_t aligned_gap(size_t bytes) { return (16 - bytes % 16) % 16; }

// and of one that does not, if its elements are smaller than 16 bytes.
constexpr size_t odd_gap(size_t bytes, size_t element) { return bytes % 16 == 0 ? element : 0; }

void release(void* array);

// The array beyond whose end or beginning an address lies, in words, or nothing.
std::string beyond(const void* address);

// An array beside which somebody has written, in words, or nothing.
std::string damaged();

// Poisons the shared variables of this library's kernels.
void poison_shared();

}  // namespace sda_fast::emulate
