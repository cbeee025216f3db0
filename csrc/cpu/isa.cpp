#include "isa.h"

#include <cstdlib>
#include <stdexcept>

#include "loops.h"
#ifdef SDA_FAST_X86
#include <cpuid.h>
#endif

namespace sda_fast {
namespace {

struct Choice {
  std::string name;
  const LoopTable* table;
  const TileTable* tiles;
};

#ifdef SDA_FAST_X86
bool has_f16c() {  // which Clang 14's __builtin_cpu_supports does not know
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

// What each table was compiled for, feature by feature: see CMakeLists.txt.
bool has_avx2() {
#ifdef SDA_FAST_X86
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
#else
  return false;
#endif
}

bool has_avx512() {
#ifdef SDA_FAST_X86
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

bool has_avx512bf16() {
#ifdef SDA_FAST_X86
  return has_avx512() && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

Choice choose() {
  const std::string best = has_avx512bf16() ? "avx512bf16"
                           : has_avx512()   ? "avx512"
                           : has_avx2()     ? "avx2"
                                            : "baseline";
  const char* forced = std::getenv("SDA_FAST_ISA");
  const std::string name = forced != nullptr && *forced != '\0' ? forced : best;

  if (name == "baseline") return {name, &baseline::table, &baseline::tile_table};
#ifdef SDA_FAST_X86
  if (name == "avx2" && has_avx2()) return {name, &avx2::table, &avx2::tile_table};
  if (name == "avx512" && has_avx512()) return {name, &avx512::table, &avx512::tile_table};
  if (name == "avx512bf16" && has_avx512bf16()) {
    return {name, &avx512::table, &avx512bf16::tile_table};
  }
#endif
  if (name == "avx2" || name == "avx512" || name == "avx512bf16") {
    throw std::runtime_error("SDA_FAST_ISA is " + name +
                             ", which this CPU does not have: the best it has is " + best + ".");
  }
  throw std::runtime_error("SDA_FAST_ISA is " + name +
                           ", which is none of avx512bf16, avx512, avx2 and baseline.");
}

const Choice& chosen() {
  static const Choice choice = choose();
  return choice;
}

}  // namespace

const std::string& isa() { return chosen().name; }
const LoopTable& loops() { return *chosen().table; }
const TileTable& tiles() { return *chosen().tiles; }

}  // namespace sda_fast
