// The row loops of affine_loops.h for one level. Included by affine_loops.cpp once per level, each time in a namespace of its own, with
// FASTQAT_TARGET (the attribute of the level), FASTQAT_INNER (the same, always inlined) and FASTQAT_WIDTH (floats in a register) defined:
// there is no include guard.
//
// kLanes lanes of explicit vectors: of plain loops GCC keeps such accumulators in memory.

using Floats = float __attribute__((vector_size(4 * FASTQAT_WIDTH)));
using Words = uint32_t __attribute__((vector_size(4 * FASTQAT_WIDTH)));
using Halves = uint16_t __attribute__((vector_size(2 * FASTQAT_WIDTH)));
constexpr int kVectors = kLanes / FASTQAT_WIDTH;

struct Lanes {
  Floats v[kVectors];
};

FASTQAT_INNER Floats load(const float* x) {
  Floats f;
  std::memcpy(&f, x, sizeof f);
  return f;
}

template <class T>
FASTQAT_INNER Words load_halves(const T* x) {
  Halves h;
  std::memcpy(&h, x, sizeof h);
  return __builtin_convertvector(h, Words);
}

FASTQAT_INNER Floats widen_low(Words w, bf16) { return (Floats)(w << 16); }
FASTQAT_INNER Floats widen_high(Words w, bf16) { return (Floats)(w & 0xffff0000u); }

// As widen_fp16().
FASTQAT_INNER Floats widen_low(Words w, fp16) {
  const Words magnitude = (w & 0x7fffu) << 13;
  const Words finite = (Words)((Floats)magnitude * 0x1p112f);
  const Words value = magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : finite;
  return (Floats)(value | (w & 0x8000u) << 16);
}
FASTQAT_INNER Floats widen_high(Words w, fp16 type) { return widen_low(w >> 16, type); }

template <class T>
FASTQAT_INNER Floats load(const T* x) {
  return widen_low(load_halves(x), T{});
}

// Vector j of each of the two sets of lanes that 2 * kLanes neighbours fill: halves that share a word go to the same lane.
FASTQAT_INNER void load_two(const float* x, int j, Floats& first, Floats& second) {
  first = load(x + j * FASTQAT_WIDTH);
  second = load(x + kLanes + j * FASTQAT_WIDTH);
}
template <class T>
FASTQAT_INNER void load_two(const T* x, int j, Floats& first, Floats& second) {
  Words w;
  std::memcpy(&w, x + 2 * j * FASTQAT_WIDTH, sizeof w);
  first = widen_low(w, T{});
  second = widen_high(w, T{});
}

FASTQAT_INNER Floats keep_lanes(Words keep, Floats values) { return (Floats)((Words)values & keep); }

// What one vector adds to the kSums sums of a row.
struct MomentTerms {
  static constexpr int kSums = 2;
  float shift;
  FASTQAT_INNER void add(Floats x, Floats, Words keep, Floats* const* sums) const {
    const Floats d = keep_lanes(keep, x - shift);
    *sums[0] += d;
    *sums[1] += d * d;
  }
};

struct ProductTerms {
  static constexpr int kSums = 2;
  float shift, limit;
  FASTQAT_INNER void add(Floats x, Floats grad_y, Words keep, Floats* const* sums) const {
    const Floats d = x - shift, most = Floats{} + limit;
    *sums[0] += keep_lanes(keep, grad_y);
    *sums[1] += keep_lanes(keep, grad_y * (most < d ? most : d));
  }
};

struct GroupTerms {
  static constexpr int kSums = 4;
  float shift;
  FASTQAT_INNER void add(Floats x, Floats grad_y, Words keep, Floats* const* sums) const {
    const Floats d = keep_lanes(keep, x - shift), g = keep_lanes(keep, grad_y);
    *sums[0] += g;
    *sums[1] += g * d;
    *sums[2] += d;
    *sums[3] += d * d;
  }
};

// The sums of one run, over two sets of lanes so that additions overlap.
template <int kSums>
struct Run {
  Lanes lanes[kSums][2] = {};

  template <class Terms>
  FASTQAT_INNER void add(int set, int j, Floats x, Floats grad_y, Words keep, const Terms& terms) {
    Floats* sums[kSums];
    FASTQAT_UNROLLED
    for (int k = 0; k < kSums; ++k) sums[k] = &lanes[k][set].v[j];
    terms.add(x, grad_y, keep, sums);
  }

  FASTQAT_INNER double total(int k) const {
    alignas(64) float sums[kLanes];
    FASTQAT_UNROLLED
    for (int j = 0; j < kVectors; ++j) {
      const Floats both = lanes[k][0].v[j] + lanes[k][1].v[j];
      std::memcpy(sums + j * FASTQAT_WIDTH, &both, sizeof both);
    }
    Four quarter[4];
    std::memcpy(quarter, sums, sizeof quarter);
    const Four four = (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
    return (four[0] + four[2]) + (four[1] + four[3]);
  }
};

template <class T, class Terms>
FASTQAT_INNER void add_two(const T* x, const T* grad_y, const Terms& terms, Run<Terms::kSums>& run) {
  FASTQAT_UNROLLED
  for (int j = 0; j < kVectors; ++j) {
    Floats values[2], grads[2];
    load_two(x, j, values[0], values[1]);
    load_two(grad_y, j, grads[0], grads[1]);
    run.add(0, j, values[0], grads[0], ~Words{}, terms);
    run.add(1, j, values[1], grads[1], ~Words{}, terms);
  }
}

template <class T, class Terms>
FASTQAT_INNER void add_one(const T* x, const T* grad_y, const Terms& terms, Run<Terms::kSums>& run) {
  FASTQAT_UNROLLED
  for (int j = 0; j < kVectors; ++j) run.add(0, j, load(x + j * FASTQAT_WIDTH), load(grad_y + j * FASTQAT_WIDTH), ~Words{}, terms);
}

// The last `count` < kLanes terms of a row of n: its last kLanes elements without those that are counted already.
template <class T, class Terms>
FASTQAT_INNER void add_rest(const T* x, const T* grad_y, int64_t n, int64_t count, const Terms& terms, Run<Terms::kSums>& run) {
  T padded[2][kLanes] = {};
  const T *last_x = x + n - kLanes, *last_grad = grad_y + n - kLanes;
  if (n < kLanes) {
    for (int64_t i = 0; i < n; ++i) {
      padded[0][kLanes - n + i] = x[i];
      padded[1][kLanes - n + i] = grad_y[i];
    }
    last_x = padded[0];
    last_grad = padded[1];
  }
  FASTQAT_UNROLLED
  for (int j = 0; j < kVectors; ++j) {
    Words index;
    FASTQAT_UNROLLED
    for (int l = 0; l < FASTQAT_WIDTH; ++l) index[l] = static_cast<uint32_t>(j * FASTQAT_WIDTH + l);
    const Words keep = (Words)(index >= static_cast<uint32_t>(kLanes - count));
    run.add(1, j, load(last_x + j * FASTQAT_WIDTH), load(last_grad + j * FASTQAT_WIDTH), keep, terms);
  }
}

template <class T, class Terms>
FASTQAT_INNER void add_row(const T* x, const T* grad_y, int64_t n, const Terms& terms, double* sums) {
  for (int k = 0; k < Terms::kSums; ++k) sums[k] = 0;
  for (int64_t begin = 0; begin < n; begin += kRun) {
    const int64_t end = n - begin < kRun ? n : begin + kRun;
    Run<Terms::kSums> run;
    int64_t i = begin;
    for (; i + 2 * kLanes <= end; i += 2 * kLanes) add_two(x + i, grad_y + i, terms, run);
    if (i + kLanes <= end) {
      add_one(x + i, grad_y + i, terms, run);
      i += kLanes;
    }
    if (i < end) add_rest(x, grad_y, n, end - i, terms, run);
    FASTQAT_UNROLLED
    for (int k = 0; k < Terms::kSums; ++k) sums[k] += run.total(k);
  }
}

template <class T>
FASTQAT_INNER const T* row_at(const RowBlock& block, int64_t r) {
  return static_cast<const T*>(block.first) + r * block.step;
}

template <class T>
FASTQAT_TARGET void row_moments(RowBlock x, int64_t n, const float* shift, double* sums) {
  for (int64_t r = 0; r < x.rows; ++r) add_row(row_at<T>(x, r), row_at<T>(x, r), n, MomentTerms{shift[r]}, sums + 2 * r);
}

template <class T>
FASTQAT_TARGET void row_products(RowBlock x, RowBlock grad_y, int64_t n, const float* shift, float limit, double* sums) {
  for (int64_t r = 0; r < x.rows; ++r) add_row(row_at<T>(x, r), row_at<T>(grad_y, r), n, ProductTerms{shift[r], limit}, sums + 2 * r);
}

template <class T>
FASTQAT_TARGET void row_group(RowBlock x, RowBlock grad_y, int64_t n, const float* shift, double* sums) {
  for (int64_t r = 0; r < x.rows; ++r) add_row(row_at<T>(x, r), row_at<T>(grad_y, r), n, GroupTerms{shift[r]}, sums + 4 * r);
}
