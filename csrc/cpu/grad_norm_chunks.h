// The output positions of a layer in chunks: boxes of whole lines, and whole planes, as far as they fit, and what each reads of x.
#pragma once

#include "grad_norm_layer.h"
#include "grad_norm_pack.h"

namespace fastqat {

inline int64_t evenly(int64_t total, int64_t most) { return ceil_div(total, ceil_div(total, std::max(most, int64_t{1}))); }

struct Chunks {
  Triple size, count;  // output positions of a chunk, chunks along each dimension
  Triple window;       // positions of x that a chunk reads

  int64_t total() const { return product(count); }

  Box outputs(const Layer& layer, int64_t index) const {
    const Triple at = {index / (count[1] * count[2]), index / count[2] % count[1], index % count[2]};
    Box box{};
    for (int i = 0; i < kSpatial; ++i) {
      box.begin[i] = at[i] * size[i];
      box.size[i] = std::min(size[i], layer.grad.size[i] - box.begin[i]);
    }
    return box;
  }

  Box inputs(const Layer& layer, const Box& outputs) const {
    Box box{{}, window};
    for (int i = 0; i < kSpatial; ++i) box.begin[i] = outputs.begin[i] * layer.step[i] - layer.padding[i];
    return box;
  }
};

// At most about `positions` outputs at a time, and fewer where their window would take more than `most` positions of x.
inline Chunks make_chunks(const Layer& layer, int64_t positions, int64_t most) {
  const auto [depth, height, width] = layer.grad.size;
  Chunks chunks{};
  do {
    const int64_t lines = std::max(positions / width, int64_t{1}), planes = std::max(positions / (height * width), int64_t{1});
    chunks.size = {planes > 1 ? evenly(depth, planes) : 1, evenly(height, lines), evenly(width, positions)};
    for (int i = 0; i < kSpatial; ++i) {
      chunks.count[i] = ceil_div(layer.grad.size[i], chunks.size[i]);
      chunks.window[i] = (chunks.size[i] - 1) * layer.step[i] + (layer.kernel[i] - 1) * layer.dilation[i] + 1;
    }
    positions = product(chunks.size) / 2;
  } while (product(chunks.window) > most && positions > 0);
  return chunks;
}

}  // namespace fastqat
