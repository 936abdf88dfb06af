// A launch, checked; it waits for nothing.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace fastqat {

template <class... Arguments>
void launch(void (*kernel)(Arguments...), int64_t blocks, int threads, cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  const cudaError_t status = cudaLaunchKernelEx(&config, kernel, arguments...);
  if (status != cudaSuccess)
    throw std::runtime_error(std::string("fastqat: a CUDA kernel was not launched: ") + cudaGetErrorString(status));
}

}  // namespace fastqat
