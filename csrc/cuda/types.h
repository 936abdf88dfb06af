// From what is known when a kernel is launched to template arguments.
#pragma once

#include <type_traits>

#include "storage.h"

namespace fastqat {

enum class Storage { float32, bfloat16, float16 };

// Elements of one 128-bit access, and whether data begin where one may.
inline int vector_of(Storage storage) { return storage == Storage::float32 ? kVector<float> : kVector<__half>; }
inline bool on_boundary(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

// Type<T> stands for T in the argument of a generic function.
template <class T>
struct Type {
  using type = T;
};

template <class Body>
void by_flag(bool flag, const Body& body) {
  flag ? body(std::true_type{}) : body(std::false_type{});
}

// body(Type<element type>).
template <class Body>
void by_storage(Storage storage, const Body& body) {
  switch (storage) {
    case Storage::float32:
      return body(Type<float>{});
    case Storage::bfloat16:
      return body(Type<__nv_bfloat16>{});
    case Storage::float16:
      return body(Type<__half>{});
  }
}

}  // namespace fastqat
