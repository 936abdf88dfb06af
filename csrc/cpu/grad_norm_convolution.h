// The convolution that every multiplying layer is, over three spatial dimensions: the numbers of its geometry and its sizes.
#pragma once

#include <array>
#include <vector>

#include "../common.h"

namespace fastqat {

constexpr int kSpatial = 3;
using Triple = std::array<int64_t, kSpatial>;

inline int64_t product(const Triple& t) { return t[0] * t[1] * t[2]; }

// Calls visit(coordinates) for every point of a box, the last coordinate fastest.
template <class Visit>
void for_each_point(const Triple& size, const Visit& visit) {
  Triple at{};
  for (at[0] = 0; at[0] < size[0]; ++at[0])
    for (at[1] = 0; at[1] < size[1]; ++at[1])
      for (at[2] = 0; at[2] < size[2]; ++at[2]) visit(at);
}

struct Convolution {
  int64_t groups;
  Triple kernel, stride, padding, dilation;
  Triple input, output;  // spatial sizes of x and grad_y
};

inline Triple spatial_sizes(const Tensor& t) { return {t.size(2), t.size(3), t.size(4)}; }
inline Triple spatial_strides(const Tensor& t) { return {t.stride(2), t.stride(3), t.stride(4)}; }

// numbers: groups, then kernel, stride, padding and dilation, three each.
inline Convolution make_convolution(const std::vector<int64_t>& numbers, const Tensor& x, const Tensor& grad_y) {
  Convolution conv{numbers[0], {}, {}, {}, {}, spatial_sizes(x), spatial_sizes(grad_y)};
  Triple* const fields[] = {&conv.kernel, &conv.stride, &conv.padding, &conv.dilation};
  for (int f = 0; f < 4; ++f)
    for (int d = 0; d < kSpatial; ++d) (*fields[f])[d] = numbers[1 + f * kSpatial + d];
  return conv;
}

}  // namespace fastqat
