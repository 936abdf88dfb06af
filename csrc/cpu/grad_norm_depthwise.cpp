// One task is a sample and some blocks of kLanes groups. For each pair of an input and an output channel of a group, the gradient of its
// taps is a sum over positions of x * grad_y, lane by lane, from boxes of both in scratch [position][kLanes].
#include "grad_norm_depthwise.h"

#include "buffer.h"
#include "grad_norm_chunks.h"
#include "levels.h"

namespace fastqat {
namespace {

constexpr int64_t kChunkFloats = 64 << 10;  // of grad_y at a time, and about as many of x: they stay in the second-level cache
constexpr int64_t kMostPositions = 1024;
constexpr int64_t kTaskGroups = 16 * kLanes;
constexpr int kMostTaps = 8;  // of a line, summed at once

struct Job {
  Layer layer;
  Chunks chunks;
  const float *mask, *slope;
  bool bias;
  Transpose transpose;
  double* partials;  // [samples][parts]
  float* inner;      // [samples][groups * outputs], or null

  int64_t parts() const { return ceil_div(layer.groups, kTaskGroups); }
  int64_t blocks() const { return ceil_div(std::min(layer.groups, kTaskGroups), kLanes); }  // of a task, at most
  int64_t x_block() const { return product(chunks.window) * kLanes; }
  int64_t grad_block() const { return product(chunks.size) * kLanes; }
  int64_t terms() const { return layer.taps() + 1; }  // of a group: its taps and its bias
};

// Two accumulators per tap hide the latency of the additions.
using Lanes = float __attribute__((vector_size(4 * kLanes)));

FASTQAT_INLINE void load(const float* from, Lanes& to) { std::memcpy(&to, from, sizeof to); }

struct Boxes {
  const float *x, *grad;  // x at the first tap of the line of taps
  Triple x_stride, size;
  int64_t tap;  // floats from a tap to the next
};

// sums[k][lane] += sum over positions of x[position + k * tap] * grad[position]
template <int K>
FASTQAT_INLINE void add_taps(const Boxes& boxes, float* sums) {
  Lanes part[2][K] = {}, x, grad;
  const float* g = boxes.grad;
  for (int64_t p = 0; p < boxes.size[0]; ++p)
    for (int64_t q = 0; q < boxes.size[1]; ++q) {
      const float* place = boxes.x + p * boxes.x_stride[0] + q * boxes.x_stride[1];
      for (int64_t i = 0; i < boxes.size[2]; i += 2)
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h, place += boxes.x_stride[2], g += kLanes) {
          if (i + h == boxes.size[2]) break;
          load(g, grad);
#pragma GCC unroll 8
          for (int k = 0; k < K; ++k) {
            load(place + k * boxes.tap, x);
            part[h][k] += x * grad;
          }
        }
    }
  for (int k = 0; k < K; ++k)
    for (int l = 0; l < kLanes; ++l) sums[k * kLanes + l] += part[0][k][l] + part[1][k][l];
}

FASTQAT_INLINE void add_line(const Boxes& boxes, int64_t taps, float* sums) {
  switch (taps) {
    case 1:
      return add_taps<1>(boxes, sums);
    case 2:
      return add_taps<2>(boxes, sums);
    case 3:
      return add_taps<3>(boxes, sums);
    case 4:
      return add_taps<4>(boxes, sums);
    case 5:
      return add_taps<5>(boxes, sums);
    case 6:
      return add_taps<6>(boxes, sums);
    case 7:
      return add_taps<7>(boxes, sums);
    default:
      return add_taps<kMostTaps>(boxes, sums);
  }
}

// sums [taps][kLanes]
FASTQAT_INLINE void add_all_taps(const Job& job, const float* x, const float* grad, const Triple& size, float* sums) {
  const Layer& layer = job.layer;
  const Triple& window = job.chunks.window;
  const Triple from = {window[1] * window[2] * kLanes, window[2] * kLanes, kLanes};
  Triple step{};
  for (int i = 0; i < kSpatial; ++i) step[i] = layer.step[i] * from[i];
  for (int64_t d = 0; d < layer.kernel[0]; ++d)
    for (int64_t h = 0; h < layer.kernel[1]; ++h)
      for (int64_t w = 0; w < layer.kernel[2]; w += kMostTaps) {
        const float* const first = x + d * layer.dilation[0] * from[0] + h * layer.dilation[1] * from[1] + w * layer.dilation[2] * from[2];
        const int64_t taps = std::min(layer.kernel[2] - w, int64_t{kMostTaps});
        add_line({first, grad, step, size, layer.dilation[2] * kLanes}, taps,
                 sums + ((d * layer.kernel[1] + h) * layer.kernel[2] + w) * kLanes);
      }
}

// Groups of one sample.
struct Part {
  int64_t sample, first, last;  // groups
  int64_t index;
};

FASTQAT_INLINE Part part_of(const Job& job, int64_t task) {
  const int64_t first = task % job.parts() * kTaskGroups;
  return {task / job.parts(), first, std::min(first + kTaskGroups, job.layer.groups), task};
}

// The channels of the groups of a task: number `first` of the `of_group` of each group.
template <class T>
FASTQAT_INLINE BoxSource<T> lanes_of(const Job& job, const Part& part, const LayerTensor& tensor, int64_t first, int64_t of_group) {
  return {tensor,       tensor.at<T>(part.sample, part.first * of_group + first), tensor.channel * of_group, part.last - part.first, kLanes,
          job.transpose};
}

struct Scratch {
  explicit Scratch(const Job& job)
      : x(job.blocks() * job.x_block()), grad(job.blocks() * job.grad_block()), sums(job.blocks() * kLanes * job.terms()) {}
  Buffer x, grad, sums;
};

// One chunk of positions of all blocks of a task.
template <class T>
FASTQAT_INLINE void add_chunk(const Job& job, const Part& part, int64_t input, int64_t output, const Box& box, Scratch& scratch) {
  const Layer& layer = job.layer;
  load_blocks(lanes_of<T>(job, part, layer.x, input, layer.channels), job.chunks.inputs(layer, box), job.x_block(), scratch.x.data());
  load_blocks(lanes_of<T>(job, part, layer.grad, output, layer.outputs), box, job.grad_block(), scratch.grad.data());
  for (int64_t block = 0; block < ceil_div(part.last - part.first, kLanes); ++block) {
    const float* const grad = scratch.grad.data() + block * job.grad_block();
    float* const sums = scratch.sums.data() + block * kLanes * job.terms();
    add_all_taps(job, scratch.x.data() + block * job.x_block(), grad, box.size, sums);
    float* const bias = sums + layer.taps() * kLanes;
    for (int64_t p = 0; job.bias && p < product(box.size); ++p)
      for (int l = 0; l < kLanes; ++l) bias[l] += grad[p * kLanes + l];
  }
}

// The squared norm of a block's gradients [taps + 1][kLanes] from one input to one output channel of each group, the last of the bias.
FASTQAT_INLINE double norm_of(const Job& job, int64_t input, const float* sums) {
  double lanes[kLanes] = {};
  const int64_t terms = job.layer.taps() + (job.bias && input == 0);
  for (int64_t k = 0; k < terms; ++k)
    for (int l = 0; l < kLanes; ++l) lanes[l] += static_cast<double>(sums[k * kLanes + l]) * sums[k * kLanes + l];
  double norm = 0;
  for (int l = 0; l < kLanes; ++l) norm += lanes[l];
  return norm;
}

// Multiplies the gradients by the mask, and adds their products with the slope.
FASTQAT_INLINE void apply_factors(const Job& job, const Part& part, int64_t group, int64_t input, int64_t output, float* sums) {
  const Layer& layer = job.layer;
  const int64_t taps = layer.taps();
  for (int64_t l = 0; l < std::min(layer.groups - group, int64_t{kLanes}); ++l) {
    const int64_t o = (group + l) * layer.outputs + output;
    for (int64_t k = 0; k < taps; ++k) {
      const int64_t at = (o * taps + k) * layer.channels + input;
      float& g = sums[k * kLanes + l];
      if (job.slope) job.inner[part.sample * layer.groups * layer.outputs + o] += g * job.slope[at];
      if (job.mask) g *= job.mask[at];
    }
  }
}

template <class T>
FASTQAT_INLINE double norm_of_pair(const Job& job, const Part& part, int64_t input, int64_t output, Scratch& scratch) {
  fill_zero(scratch.sums.data(), job.blocks() * kLanes * job.terms());
  for (int64_t c = 0; c < job.chunks.total(); ++c) add_chunk<T>(job, part, input, output, job.chunks.outputs(job.layer, c), scratch);
  double norm = 0;
  for (int64_t group = part.first; group < part.last; group += kLanes) {
    float* const sums = scratch.sums.data() + (group - part.first) * job.terms();
    if (job.mask || job.slope) apply_factors(job, part, group, input, output, sums);
    norm += norm_of(job, input, sums);
  }
  return norm;
}

template <class T>
FASTQAT_INLINE void run_task(const Job& job, int64_t task, Scratch& scratch) {
  const Part part = part_of(job, task);
  double norm = 0;
  for (int64_t output = 0; output < job.layer.outputs; ++output)
    for (int64_t input = 0; input < job.layer.channels; ++input) norm += norm_of_pair<T>(job, part, input, output, scratch);
  job.partials[part.index] = norm;
}

FASTQAT_INLINE void run_tasks(const Job& job, int64_t begin, int64_t end) {
  Scratch scratch(job);
  for (int64_t task = begin; task < end; ++task) {
    if (job.layer.x.type == ScalarType::Float)
      run_task<float>(job, task, scratch);
    else if (job.layer.x.type == ScalarType::BFloat16)
      run_task<bf16>(job, task, scratch);
    else
      run_task<fp16>(job, task, scratch);
  }
}

FASTQAT_LEVELS(run_tasks)

}  // namespace

// Tiles of a group fill channels * kernel width of kLanes lanes, and a row per output.
bool is_depthwise(const Layer& layer) {
  const int64_t lanes_of_tile = layer.channels * (layer.dilation[2] == 1 ? layer.kernel[2] : 1);
  return layer.groups > 1 && layer.channels * layer.outputs <= 4 && lanes_of_tile < kLanes / 2;
}

void depthwise_norms(const Layer& layer, const std::optional<Tensor>& mask, const std::optional<Tensor>& slope, const Tensor& sq_norm,
                     const std::optional<Tensor>& inner, bool bias) {
  const int64_t task_groups = ceil_div(std::min(layer.groups, kTaskGroups), kLanes) * kLanes;
  const Chunks chunks = make_chunks(layer, std::min(kChunkFloats / task_groups, kMostPositions), 3 * kChunkFloats / task_groups);
  Job job{layer, chunks, optional_data(mask), optional_data(slope), bias, transpose_kernel(), nullptr, nullptr};
  std::vector<double> partials(static_cast<size_t>(layer.samples * job.parts()));
  job.partials = partials.data();
  if (inner) {
    job.inner = data<float>(*inner);
    std::fill_n(job.inner, inner->numel(), 0.0f);
  }
  const auto loops = FASTQAT_AT_LEVEL(run_tasks);
  torch::stable::parallel_for(0, layer.samples * job.parts(), 1, [&](int64_t begin, int64_t end) { loops(job, begin, end); });
  for (int64_t n = 0; n < layer.samples; ++n) {
    double sum = 0;
    for (int64_t p = 0; p < job.parts(); ++p) sum += partials[n * job.parts() + p];
    data<float>(sq_norm)[n] = static_cast<float>(sum);
  }
}

}  // namespace fastqat
