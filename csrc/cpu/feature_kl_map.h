// A feature map [N, C, L] in memory: positions or channels are neighbours.
#pragma once

#include "../common.h"

namespace fastqat {

struct FeatureMap {
  char* data;
  int64_t sample, channel, position;  // strides, in elements
  ScalarType type;

  int64_t item_bytes() const { return type == ScalarType::Float ? 4 : 2; }
  char* address(int64_t n, int64_t c, int64_t l) const { return data + (n * sample + c * channel + l * position) * item_bytes(); }
  template <class T>
  T* at(int64_t n, int64_t c, int64_t l) const {
    return reinterpret_cast<T*>(data) + n * sample + c * channel + l * position;
  }
};

inline FeatureMap as_map(const Tensor& t) {
  return {static_cast<char*>(t.data_ptr()), t.stride(0), t.stride(1), t.stride(2), t.scalar_type()};
}

// use(T{}) for the storage type T.
template <class Use>
inline __attribute__((always_inline)) void with_type(ScalarType type, const Use& use) {
  if (type == ScalarType::Float) return use(float{});
  if (type == ScalarType::BFloat16) return use(bf16{});
  use(fp16{});
}

}  // namespace fastqat
