// Can the kernels of this object run on a device? Asked once per process, before a backend is offered.
#include "device.h"

#include <cuda_runtime.h>

namespace fastqat {
namespace {

// Its image exists for the same architectures as every other kernel of this object.
__global__ void probe_kernel() {}

std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

}  // namespace

std::string runtime_version() {
  int number = 0;
  cudaRuntimeGetVersion(&number);
  return version(number);
}

std::string why_not(int device) {
  cudaError_t status = cudaSetDevice(device);
  cudaFuncAttributes attributes;
  if (status == cudaSuccess) status = cudaFuncGetAttributes(&attributes, probe_kernel);
  if (status == cudaSuccess) return "";
  cudaGetLastError();
  int driver = 0;
  cudaDriverGetVersion(&driver);
  return "CUDA runtime " + runtime_version() + " on driver " + version(driver) + ": " + cudaGetErrorString(status);
}

}  // namespace fastqat
