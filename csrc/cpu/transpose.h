// Transposes of kLanes x kLanes floats.
#pragma once

#include "../common.h"

namespace fastqat {

// to[column][row] = from[row * stride + column], kLanes of each.
using Transpose = void (*)(const float* from, int64_t stride, float* to);
Transpose transpose_kernel();  // of the current instruction-set level

}  // namespace fastqat
