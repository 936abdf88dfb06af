// The Python module fastqat._C_cuda. It is loaded beside a CUDA torch only; cudart is linked statically.
#include <pybind11/pybind11.h>

#include "device.h"

PYBIND11_MODULE(_C_cuda, m) {
  m.doc() = "CUDA kernels of fastqat";
  m.def("build_info", [] {
    pybind11::dict facts = pybind11::module_::import("json").attr("loads")(FASTQAT_BUILD_FACTS);
    facts["cuda_runtime"] = fastqat::runtime_version();
    return facts;
  });
  m.def("why_not", &fastqat::why_not, "Why the kernels do not run on a device; empty when they do.");
}
