// A launch, checked; it waits for nothing.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <climits>
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

// As many launches as the blocks need; each kernel is told its first block.
template <class... Parameters, class... Arguments>
void launch_blocks(void (*kernel)(Parameters...), int64_t blocks, int threads, cudaStream_t stream, const Arguments&... arguments) {
  for (int64_t first = 0; first < blocks; first += INT_MAX)
    launch(kernel, std::min<int64_t>(blocks - first, INT_MAX), threads, stream, arguments..., first);
}

}  // namespace fastqat
