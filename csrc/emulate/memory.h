#pragma once

// Memory in which an access beyond an array does not go unseen.

#include <cstddef>
#include <string>

namespace sda_fast::emulate {

// Fresh memory is full of it: as floating-point numbers NaN, as integers -1.
constexpr unsigned char kPoison = 0xFF;

// An array that ends at a page which nothing may touch: exactly, or, as arrays of a GPU are
// aligned, rounded up to 16 bytes. What lies on its pages beside it is poison.
void* allocate(size_t bytes, bool exact);
void release(void* array);

// The array beyond whose end or beginning an address lies, in words, or nothing.
std::string beyond(const void* address);

// An array beside which somebody has written, in words, or nothing.
std::string damaged();

// Poisons the shared variables of this library's kernels.
void poison_shared();

}  // namespace sda_fast::emulate
