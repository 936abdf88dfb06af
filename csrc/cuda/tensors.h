// What kernels take from torch's tensors and give back to them, through the stable ABI alone.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <array>

#include "../common.h"
#include "types.h"

namespace fastqat {

using torch::stable::accelerator::DeviceGuard;

inline cudaStream_t current_stream(const Tensor& x) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline Storage storage_of(const Tensor& x) {
  const ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half,
                  "the cuda backend takes float32, bfloat16 and float16");
  return type == ScalarType::Float ? Storage::float32 : type == ScalarType::BFloat16 ? Storage::bfloat16 : Storage::float16;
}

// Sizes, types and devices are checked here too, since the operators can be called without the Python layer; layouts are the
// caller's word.
inline bool fits(const Tensor& t, ScalarType type, int64_t numel, const Tensor& x) {
  return t.scalar_type() == type && t.numel() == numel && t.is_cuda() && t.get_device_index() == x.get_device_index();
}

inline bool fits(const std::optional<Tensor>& t, ScalarType type, int64_t numel, const Tensor& x) {
  return !t.has_value() || fits(*t, type, numel, x);
}

// Room for partials. torch's allocator hands it out in the order of the stream, in a graph's own pool while one is captured, so that
// it may be freed as soon as the kernels are launched.
inline Tensor workspace(const Tensor& x, int64_t numel, ScalarType type = ScalarType::Double) {
  return torch::stable::new_empty(x, {&numel, 1}, type);
}

}  // namespace fastqat
