// Fake quantization on the CPU: forward, backward and codes, one pass over the data each. See ../fake_quant.h for the maths of an
// element and partition.h for the cut into tasks.
#include <torch/csrc/stable/library.h>

#include <vector>

#include "../fake_quant.h"
#include "levels.h"
#include "partition.h"
#include "storage.h"

namespace fastqat {
namespace {

struct Job {
  const void* x;
  const void* grad_y;
  void* out;            // x_hat, grad_x or codes
  const float* scale;   // one per row channel, or one per column
  const float* zero_point;  // null: all zero
  double* scale_sums;       // partials [row task or row][column task or column]; null: not wanted
  double* zero_point_sums;
  ScalarType type, code_type;
  int64_t channels;
  float qmin, qmax;
  bool reciprocal;
  Partition cut;
};

FASTQAT_INLINE QuantRange range_at(const Job& job, int64_t i) {
  return make_range(job.scale[i], job.zero_point ? job.zero_point[i] : 0.0f, job.qmin, job.qmax);
}

// Calls body(offset, n, i0) for blocks of at most kBlock elements: i0 indexes the scale of the block's row or first column.
template <class Body>
FASTQAT_INLINE void for_each_block(const Job& job, int64_t begin, int64_t end, const Body& body) {
  for (int64_t task = begin; task < end; ++task) {
    const Tile tile = tile_of(job.cut, task);
    for (int64_t row = tile.row; row < tile.row_end; ++row)
      for (int64_t column = tile.column; column < tile.column_end; column += kBlock) {
        const int64_t left = tile.column_end - column;
        body(row * job.cut.columns + column, left < kBlock ? left : int64_t{kBlock}, job.cut.by_column ? column : row % job.channels);
      }
  }
}

template <class T, bool kReciprocal>
struct ForwardBody {
  const Job& job;
  FASTQAT_INLINE void operator()(int64_t offset, int64_t n, int64_t i0) const {
    alignas(64) float in[kBlock], result[kBlock];
    T* const out = static_cast<T*>(job.out) + offset;
    const float* const x = load_block(static_cast<const T*>(job.x) + offset, n, in);
    float* const y = output_block(out, result);
    if (job.cut.by_column) {
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) y[i] = fake_quant<kReciprocal>(x[i], range_at(job, i0 + i));
    } else {
      const QuantRange range = range_at(job, i0);
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) y[i] = fake_quant<kReciprocal>(x[i], range);
    }
    store_block(out, n, y);
  }
};

template <class T, class C, bool kReciprocal>
struct CodesBody {
  const Job& job;
  FASTQAT_INLINE void operator()(int64_t offset, int64_t n, int64_t i0) const {
    alignas(64) float in[kBlock];
    C* const codes = static_cast<C*>(job.out) + offset;
    const float* const x = load_block(static_cast<const T*>(job.x) + offset, n, in);
    for (int64_t i = 0; i < n; ++i) {
      const QuantRange range = range_at(job, job.cut.by_column ? i0 + i : i0);
      codes[i] = static_cast<C>(static_cast<int32_t>(code<kReciprocal>(x[i], range)));
    }
  }
};

// Gradients of one block. The terms of the sums go to scratch in the first-level cache, so that this loop has no carried
// dependence and vectorises whole; grad_x may be grad_y itself.
template <bool kReciprocal, bool kZeroPoint, class RangeAt>
FASTQAT_INLINE void block_gradients(const float* x, const float* grad_y, float* grad_x, int64_t n, const RangeAt& range, float* scale,
                                    float* zero_point) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const QuantGrad g = fake_quant_grad<kReciprocal>(x[i], grad_y[i], range(i));
    grad_x[i] = g.x;
    scale[i] = g.scale;
    if (kZeroPoint) zero_point[i] = g.zero_point;
  }
}

// Sums of a row: kLanes fp64 lanes; kRun terms of a lane are added in fp32 first, an error of at most 7 fp32 roundings.
constexpr int kRun = 8;

FASTQAT_INLINE void sum_block(const float* terms, int64_t n, double* lanes) {
  int64_t i = 0;
  for (; i + kRun * kLanes <= n; i += kRun * kLanes) {
    float run[kLanes];
    for (int l = 0; l < kLanes; ++l) {
      const float* const t = terms + i + l;
      run[l] = ((t[0] + t[kLanes]) + (t[2 * kLanes] + t[3 * kLanes])) +
               ((t[4 * kLanes] + t[5 * kLanes]) + (t[6 * kLanes] + t[7 * kLanes]));
    }
    for (int l = 0; l < kLanes; ++l) lanes[l] += run[l];
  }
  for (; i < n; ++i) lanes[i % kLanes] += terms[i];
}

FASTQAT_INLINE double fold(const double* lanes) {
  double total = 0;
  for (int l = 0; l < kLanes; ++l) total += lanes[l];
  return total;
}

struct RowRange {
  QuantRange range;
  FASTQAT_INLINE QuantRange operator()(int64_t) const { return range; }
};

struct ColumnRange {
  const Job& job;
  int64_t first;
  FASTQAT_INLINE QuantRange operator()(int64_t i) const { return range_at(job, first + i); }
};

// Scratch of one task.
struct Scratch {
  alignas(64) float x[kBlock], grad_y[kBlock], grad_x[kBlock], scale[kBlock], zero_point[kBlock];
};

template <class T, bool kReciprocal, bool kZeroPoint, class RangeAt>
FASTQAT_INLINE void backward_block(const Job& job, int64_t offset, int64_t n, const RangeAt& range, Scratch& scratch) {
  T* const out = static_cast<T*>(job.out) + offset;
  const float* const x = load_block(static_cast<const T*>(job.x) + offset, n, scratch.x);
  const float* const grad_y = load_block(static_cast<const T*>(job.grad_y) + offset, n, scratch.grad_y);
  float* const grad_x = output_block(out, scratch.grad_x);
  block_gradients<kReciprocal, kZeroPoint>(x, grad_y, grad_x, n, range, scratch.scale, scratch.zero_point);
  store_block(out, n, grad_x);
}

// Rows: one pair of partials per (row, column task).
template <class T, bool kReciprocal, bool kZeroPoint>
FASTQAT_INLINE void backward_rows(const Job& job, int64_t begin, int64_t end) {
  Scratch scratch;
  for (int64_t task = begin; task < end; ++task) {
    const Tile tile = tile_of(job.cut, task);
    for (int64_t row = tile.row; row < tile.row_end; ++row) {
      const RowRange range{range_at(job, row % job.channels)};
      double scale[kLanes] = {}, zero_point[kLanes] = {};
      for (int64_t column = tile.column; column < tile.column_end; column += kBlock) {
        const int64_t left = tile.column_end - column, n = left < kBlock ? left : int64_t{kBlock};
        backward_block<T, kReciprocal, kZeroPoint>(job, row * job.cut.columns + column, n, range, scratch);
        sum_block(scratch.scale, n, scale);
        if (kZeroPoint) sum_block(scratch.zero_point, n, zero_point);
      }
      const int64_t partial = row * job.cut.column_tasks + task % job.cut.column_tasks;
      job.scale_sums[partial] = fold(scale);
      if (kZeroPoint) job.zero_point_sums[partial] = fold(zero_point);
    }
  }
}

// Columns: a task adds up its rows column by column; one pair of partials per (row task, column).
template <class T, bool kReciprocal, bool kZeroPoint>
FASTQAT_INLINE void backward_columns(const Job& job, int64_t begin, int64_t end) {
  Scratch scratch;
  for (int64_t task = begin; task < end; ++task) {
    const Tile tile = tile_of(job.cut, task);
    const int64_t n = tile.column_end - tile.column;
    const int64_t partial = task / job.cut.column_tasks * job.cut.columns + tile.column;
    double* const scale = job.scale_sums + partial;
    double* const zero_point = job.zero_point_sums + (kZeroPoint ? partial : 0);
    for (int64_t row = tile.row; row < tile.row_end; ++row) {
      const int64_t offset = row * job.cut.columns + tile.column;
      backward_block<T, kReciprocal, kZeroPoint>(job, offset, n, ColumnRange{job, tile.column}, scratch);
      for (int64_t i = 0; i < n; ++i) scale[i] += scratch.scale[i];
      if (kZeroPoint)
        for (int64_t i = 0; i < n; ++i) zero_point[i] += scratch.zero_point[i];
    }
  }
}

// Runtime type and semantics -> one instance of the always-inlined loops. A macro, since a lambda would not carry the target of
// the level it is called from.
#define FASTQAT_BY_TYPE(CALL)                                         \
  switch (job.type) {                                                 \
    case ScalarType::BFloat16: return job.reciprocal ? CALL(bf16, true) : CALL(bf16, false);   \
    case ScalarType::Half: return job.reciprocal ? CALL(fp16, true) : CALL(fp16, false);       \
    default: return job.reciprocal ? CALL(float, true) : CALL(float, false);                   \
  }

FASTQAT_INLINE void forward(const Job& job, int64_t begin, int64_t end) {
#define FASTQAT_FORWARD(T, R) for_each_block(job, begin, end, ForwardBody<T, R>{job})
  FASTQAT_BY_TYPE(FASTQAT_FORWARD)
}

FASTQAT_INLINE void codes(const Job& job, int64_t begin, int64_t end) {
#define FASTQAT_CODES(T, R)                                                                                          \
  (job.code_type == ScalarType::Char    ? for_each_block(job, begin, end, CodesBody<T, int8_t, R>{job})              \
   : job.code_type == ScalarType::Byte  ? for_each_block(job, begin, end, CodesBody<T, uint8_t, R>{job})             \
   : job.code_type == ScalarType::Short ? for_each_block(job, begin, end, CodesBody<T, int16_t, R>{job})             \
                                        : for_each_block(job, begin, end, CodesBody<T, int32_t, R>{job}))
  FASTQAT_BY_TYPE(FASTQAT_CODES)
}

FASTQAT_INLINE void backward(const Job& job, int64_t begin, int64_t end) {
#define FASTQAT_BACKWARD(T, R)                                                                                            \
  (job.cut.by_column ? (job.zero_point_sums ? backward_columns<T, R, true>(job, begin, end)                               \
                                            : backward_columns<T, R, false>(job, begin, end))                             \
                     : (job.zero_point_sums ? backward_rows<T, R, true>(job, begin, end) : backward_rows<T, R, false>(job, begin, end)))
  FASTQAT_BY_TYPE(FASTQAT_BACKWARD)
}

FASTQAT_LEVELS(forward)
FASTQAT_LEVELS(codes)
FASTQAT_LEVELS(backward)

using Loops = void (*)(const Job&, int64_t, int64_t);

void run(const Job& job, Loops loops) {
  torch::stable::parallel_for(0, job.cut.tasks(), 2, [&](int64_t begin, int64_t end) { loops(job, begin, end); });
}

// One value per column: repeats each channel's value over its short run.
std::vector<float> per_column(const float* values, int64_t channels, int64_t inner) {
  std::vector<float> expanded(static_cast<size_t>(channels * inner));
  for (int64_t i = 0; i < channels * inner; ++i) expanded[static_cast<size_t>(i)] = values[i / inner];
  return expanded;
}

struct Prepared {
  Job job;
  std::vector<float> scale, zero_point;  // expanded when the cut goes by column
};

void prepare(Prepared& p, const Tensor& x, const Tensor& scale, const std::optional<Tensor>& zero_point, int64_t outer, int64_t channels,
             int64_t inner, int64_t qmin, int64_t qmax, bool reciprocal) {
  STD_TORCH_CHECK(x.numel() == outer * channels * inner && scale.numel() == channels, "fake_quant: layout does not fit x and scale");
  Job& job = p.job;
  job = Job{};
  job.x = x.data_ptr();
  job.type = x.scalar_type();
  STD_TORCH_CHECK(job.type == ScalarType::Float || job.type == ScalarType::BFloat16 || job.type == ScalarType::Half,
                  "fake_quant: the cpu backend takes float32, bfloat16 and float16");
  job.scale = data<const float>(scale);
  job.zero_point = optional_data(zero_point);
  job.channels = channels;
  job.qmin = static_cast<float>(qmin);
  job.qmax = static_cast<float>(qmax);
  job.reciprocal = reciprocal;
  job.cut = make_partition(outer, channels, inner);
  if (job.cut.by_column && inner > 1) {
    p.scale = per_column(job.scale, channels, inner);
    job.scale = p.scale.data();
    if (job.zero_point) p.zero_point = per_column(job.zero_point, channels, inner);
    if (job.zero_point) job.zero_point = p.zero_point.data();
  }
}

// Second stage of the sums: fixed order, fp64, one value per channel.
void finish_sums(const Job& job, const std::vector<double>& partials, int64_t inner, double factor, float* grad) {
  std::vector<double> total(static_cast<size_t>(job.channels), 0.0);
  const int64_t width = job.cut.by_column ? job.cut.columns : job.cut.column_tasks;
  for (int64_t i = 0; i < static_cast<int64_t>(partials.size()); ++i) {
    const int64_t channel = job.cut.by_column ? i % width / inner : i / width % job.channels;
    total[static_cast<size_t>(channel)] += partials[static_cast<size_t>(i)];
  }
  for (int64_t c = 0; c < job.channels; ++c) grad[c] = static_cast<float>(total[static_cast<size_t>(c)] * factor);
}

void fake_quant_cpu(Tensor x, Tensor scale, std::optional<Tensor> zero_point, Tensor x_hat, int64_t outer, int64_t channels, int64_t inner,
                    int64_t qmin, int64_t qmax, bool reciprocal) {
  Prepared p;
  prepare(p, x, scale, zero_point, outer, channels, inner, qmin, qmax, reciprocal);
  p.job.out = x_hat.data_ptr();
  run(p.job, FASTQAT_AT_LEVEL(forward));
}

void quantize_codes_cpu(Tensor x, Tensor scale, std::optional<Tensor> zero_point, Tensor codes_out, int64_t outer, int64_t channels,
                        int64_t inner, int64_t qmin, int64_t qmax, bool reciprocal) {
  Prepared p;
  prepare(p, x, scale, zero_point, outer, channels, inner, qmin, qmax, reciprocal);
  p.job.out = codes_out.data_ptr();
  p.job.code_type = codes_out.scalar_type();
  run(p.job, FASTQAT_AT_LEVEL(codes));
}

void fake_quant_backward_cpu(Tensor x, Tensor scale, std::optional<Tensor> zero_point, Tensor grad_y, Tensor grad_x,
                             std::optional<Tensor> grad_scale, std::optional<Tensor> grad_zero_point, int64_t outer, int64_t channels,
                             int64_t inner, int64_t qmin, int64_t qmax, bool reciprocal, double grad_factor) {
  Prepared p;
  prepare(p, x, scale, zero_point, outer, channels, inner, qmin, qmax, reciprocal);
  Job& job = p.job;
  job.grad_y = grad_y.data_ptr();
  job.out = grad_x.data_ptr();
  const int64_t count = job.cut.by_column ? job.cut.row_tasks * job.cut.columns : job.cut.rows * job.cut.column_tasks;
  std::vector<double> scale_sums(static_cast<size_t>(count));
  std::vector<double> zero_point_sums(grad_zero_point ? static_cast<size_t>(count) : 0);
  job.scale_sums = scale_sums.data();
  job.zero_point_sums = grad_zero_point ? zero_point_sums.data() : nullptr;
  run(job, FASTQAT_AT_LEVEL(backward));
  if (grad_scale) finish_sums(job, scale_sums, inner, grad_factor, data<float>(*grad_scale));
  if (grad_zero_point) finish_sums(job, zero_point_sums, inner, grad_factor, data<float>(*grad_zero_point));
}

}  // namespace
}  // namespace fastqat

STABLE_TORCH_LIBRARY_IMPL(fastqat_native, CPU, m) {
  m.impl("fake_quant", TORCH_BOX(&fastqat::fake_quant_cpu));
  m.impl("quantize_codes", TORCH_BOX(&fastqat::quantize_codes_cpu));
  m.impl("fake_quant_backward", TORCH_BOX(&fastqat::fake_quant_backward_cpu));
}
