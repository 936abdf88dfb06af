#pragma once

#include <string>

namespace fastqat {

std::string runtime_version();
std::string why_not(int device);  // empty when this object's kernels run on the device

}  // namespace fastqat
