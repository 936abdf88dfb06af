// The native schemas (namespace fastqat_native) and the Python module fastqat._C, which holds the facts of the build.
#include <pybind11/pybind11.h>
#include <torch/csrc/stable/library.h>

#include <string>

#include "common.h"

// Outputs are allocated by the caller and written in place: Python decides layout, dtype and whether a buffer is reused.
// blocks, outer, channels, inner: the tensor in storage order, seen as [blocks, outer, channels, inner]; (b, o, c, i) uses scale
// b * channels + c, and what shares a scale is summed over outer and inner. Per tensor all but inner are 1, per channel blocks is 1.
STABLE_TORCH_LIBRARY(fastqat_native, m) {
  m.def(
      "fake_quant(Tensor x, Tensor scale, Tensor? zero_point, Tensor(a!) x_hat, int blocks, int outer, int channels, int inner, "
      "int qmin, int qmax, bool reciprocal) -> ()");
  m.def(
      "fake_quant_backward(Tensor x, Tensor scale, Tensor? zero_point, Tensor grad_y, Tensor(a!) grad_x, "
      "Tensor(b!)? grad_scale, Tensor(c!)? grad_zero_point, int blocks, int outer, int channels, int inner, int qmin, int qmax, "
      "bool reciprocal, float grad_factor) -> ()");
  m.def(
      "quantize_codes(Tensor x, Tensor scale, Tensor? zero_point, Tensor(a!) codes, int blocks, int outer, int channels, int inner, "
      "int qmin, int qmax, bool reciprocal) -> ()");
  // Many tensors at once: lists with one entry per tensor; `numbers` has seven each, one tensor after the other: blocks, outer, channels,
  // inner, qmin, qmax, reciprocal (0 or 1). Sums that are not wanted are None.
  m.def("fake_quant_all(Tensor[] xs, Tensor[] scales, Tensor?[] zero_points, Tensor(a!)[] x_hats, int[] numbers) -> ()");
  m.def(
      "fake_quant_all_backward(Tensor[] xs, Tensor[] scales, Tensor?[] zero_points, Tensor[] grad_ys, Tensor(a!)[] grad_xs, "
      "Tensor(b!)?[] grad_scales, Tensor(c!)?[] grad_zero_points, int[] numbers, float[] grad_factors) -> ()");
  // One convolution over three spatial dimensions: x [N, C, D, H, W], grad_y [N, O, D', H', W'], any strides; numbers: groups, then kernel,
  // stride, padding and dilation, three each. mask and slope: [O, kd, kh, kw, C / groups] contiguous. sq_norm [N], inner [N, O].
  m.def(
      "grad_sq_norm_direct(Tensor x, Tensor grad_y, Tensor? mask, Tensor? slope, Tensor(a!) sq_norm, Tensor(b!)? inner, int[] numbers, "
      "bool bias) -> ()");
  m.def("grad_sq_norm_gram(Tensor x, Tensor grad_y, Tensor? mask, Tensor(a!) sq_norm, int[] numbers, bool bias, bool shifted) -> ()");
  // Rows with neighbouring elements, any row stride; logits [N, C], features [N, D], norm [N].
  m.def("grand_last(Tensor logits, Tensor targets, Tensor features, Tensor(a!) norm, bool bias) -> ()");
  // Layers with an affine part: x and grad_y [N, C, T] with channels (channels_inner) or positions at stride 1, mean and var [C] or None,
  // sq_norm [N]. statistics: what x_hat is, 0 x, 1 min(x, 0), 2 (x - mean) / sqrt(var + eps) with mean and var as given, 3 with those of
  // each of `groups` groups of channels, 4 of the channels at each position, 5 as 4 with the mean square as var and no mean. sq_norm:
  // sum over c of (sum_t grad_y x_hat)^2 where `weight`, plus sum over c of (sum_t grad_y)^2 where `bias`.
  m.def(
      "affine_grad_sq_norm(Tensor x, Tensor grad_y, Tensor? mean, Tensor? var, Tensor(a!) sq_norm, int statistics, int groups, "
      "float eps, bool channels_inner, bool weight, bool bias) -> ()");
  // Rows with neighbouring elements, any row stride; targets: class indices [N] or probabilities [N, C]. A row whose target is none gets
  // NaN.
  m.def(
      "logit_scores(Tensor logits, Tensor? targets, Tensor? teacher, Tensor(a!)? loss, Tensor(b!)? evs, Tensor(c!)? correct, "
      "Tensor(d!) entropy, Tensor(e!) confidence, Tensor(f!) margin, Tensor(g!)? ds, Tensor(h!)? res, Tensor(i!)? kd) "
      "-> ()");
  // Feature maps [N, C, L], positions or channels (channels_inner) at stride 1; row [N, C], statistics [4, N, C]: largest value of student
  // and of teacher, sum of e = exp(value - largest) of the student, its logarithm minus that of the teacher. channel: row [N], slope [N,
  // C].
  m.def("feature_kl(Tensor student, Tensor teacher, Tensor(a!) row, Tensor(b!) statistics, bool channels_inner) -> ()");
  m.def(
      "feature_kl_backward(Tensor grad_row, Tensor student, Tensor teacher, Tensor row, Tensor statistics, Tensor(a!) grad_x, "
      "bool channels_inner) -> ()");
  m.def("feature_kl_channel(Tensor student, Tensor teacher, Tensor(a!) row, Tensor(b!) slope, bool channels_inner) -> ()");
}

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of fastqat; importing it registers torch.ops.fastqat_native.*";
  m.def("build_info", [] {
    pybind11::dict facts = pybind11::module_::import("json").attr("loads")(FASTQAT_BUILD_FACTS);
    facts["compiler"] = compiler();
    facts["cpu_levels"] = fastqat::compiled_levels();
    return facts;
  });
  m.def("cpu_level", [] { return std::string(fastqat::level_name(fastqat::cpu_level())); });
  m.def("set_cpu_level", [](const std::string& name) { fastqat::set_cpu_level(name.c_str()); });
}
