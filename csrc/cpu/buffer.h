// Scratch memory of one worker.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace fastqat {

// fp32 on a 64-byte boundary, zero at first.
class Buffer {
 public:
  explicit Buffer(int64_t floats) : memory_(static_cast<float*>(std::calloc(static_cast<size_t>(floats) + 16, sizeof(float))), std::free) {
    if (!memory_) throw std::bad_alloc();
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    data_ = memory_.get() + (64 - address % 64) % 64 / sizeof(float);
  }
  float* data() const { return data_; }

 private:
  std::unique_ptr<float, void (*)(void*)> memory_;
  float* data_;
};

}  // namespace fastqat
