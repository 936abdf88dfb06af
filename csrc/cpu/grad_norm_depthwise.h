// Per-sample gradient norms of depthwise convolutions and others with tiny groups: lanes are groups.
#pragma once

#include "grad_norm_layer.h"

namespace fastqat {

// Whether groups are so small that tiles of one group would leave most lanes empty.
bool is_depthwise(const Layer& layer);

void depthwise_norms(const Layer& layer, const std::optional<Tensor>& mask, const std::optional<Tensor>& slope, const Tensor& sq_norm,
                     const std::optional<Tensor>& inner, bool bias);

}  // namespace fastqat
