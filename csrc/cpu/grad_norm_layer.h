// A layer whose per-sample gradient norms are wanted: its tensors in memory, and its convolution with as few and as long dimensions as
// sizes and strides allow.
#pragma once

#include "grad_norm_convolution.h"

namespace fastqat {

// x or grad_y in memory, all strides in elements.
struct LayerTensor {
  const char* data;
  ScalarType type;
  int64_t sample, channel;
  Triple stride, size;

  template <class T>
  const T* at(int64_t n, int64_t c) const {
    return reinterpret_cast<const T*>(data) + n * sample + c * channel;
  }
};

struct Layer {
  LayerTensor x, grad;
  int64_t samples, groups;
  int64_t channels, outputs;  // of a group
  Triple kernel, step, padding, dilation;

  int64_t taps() const { return product(kernel); }
  int64_t columns() const { return channels * taps(); }
  int64_t positions() const { return product(grad.size); }
  bool padded() const { return padding != Triple{}; }
};

inline LayerTensor make_layer_tensor(const Tensor& t) {
  return {static_cast<const char*>(t.data_ptr()), t.scalar_type(), t.stride(0), t.stride(1), spatial_strides(t), spatial_sizes(t)};
}

// A dimension in which the kernel sees one position per output, at the output's own place.
inline bool is_pointwise(const Layer& layer, int i) { return layer.kernel[i] == 1 && layer.padding[i] == 0 && layer.step[i] == 1; }

// Positions that a kernel of one tap steps over are left out of x, unless rows of neighbours are what makes x fast to read.
inline void skip_unseen(Layer& layer) {
  for (int i = 0; i < kSpatial; ++i) {
    if (layer.kernel[i] != 1) continue;
    layer.dilation[i] = 1;
    const bool neighbours = layer.x.stride[i] == 1 && layer.x.channel != 1;
    if (layer.padding[i] != 0 || (layer.step[i] != 1 && neighbours)) continue;
    layer.x.stride[i] *= layer.step[i];
    layer.x.size[i] = layer.grad.size[i];
    layer.step[i] = 1;
  }
}

// Pointwise dimensions that follow each other in memory, in x and in grad_y, become one.
inline void merge_into_last(Layer& layer, int i) {
  constexpr int last = kSpatial - 1;
  const auto follows = [i](const LayerTensor& t) { return t.size[i] == 1 || t.stride[i] == t.size[last] * t.stride[last]; };
  if (!is_pointwise(layer, i) || !is_pointwise(layer, last) || !follows(layer.x) || !follows(layer.grad)) return;
  for (LayerTensor* t : {&layer.x, &layer.grad}) {
    t->size[last] *= t->size[i];
    t->size[i] = 1;
  }
}

inline Layer make_layer(const Tensor& x, const Tensor& grad_y, const std::vector<int64_t>& numbers) {
  const Convolution conv = make_convolution(numbers, x, grad_y);
  Layer layer{make_layer_tensor(x),
              make_layer_tensor(grad_y),
              x.size(0),
              conv.groups,
              x.size(1) / conv.groups,
              grad_y.size(1) / conv.groups,
              conv.kernel,
              conv.stride,
              conv.padding,
              conv.dilation};
  skip_unseen(layer);
  merge_into_last(layer, 1);
  merge_into_last(layer, 0);
  return layer;
}

}  // namespace fastqat
