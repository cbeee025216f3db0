#pragma once

#include <string>

namespace sda_fast {

// The instruction set whose loops are in use: "avx512bf16", "avx512", "avx2" or "baseline". The
// best that this CPU has, or the one that the environment variable SDA_FAST_ISA names. Throws a
// sentence where that one is unknown or not to be had.
const std::string& isa();

}  // namespace sda_fast
