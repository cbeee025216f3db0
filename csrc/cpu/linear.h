#pragma once

#include "../terms.h"

namespace sda_fast::cpu {

// The linear combination: a new tensor, or in place of the first, the argument of that name.
Tensor linear(Terms terms);
void linear_(const char* name, Terms terms);

}  // namespace sda_fast::cpu
