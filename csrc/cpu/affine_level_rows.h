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

struct LaneMask {
  Words v[kVectors];
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

  FASTQAT_INNER void store(int k, float* sums) const {
    FASTQAT_UNROLLED
    for (int j = 0; j < kVectors; ++j) {
      const Floats both = lanes[k][0].v[j] + lanes[k][1].v[j];
      std::memcpy(sums + j * FASTQAT_WIDTH, &both, sizeof both);
    }
  }
};

// Of the segments of 2 * kHalf lanes of `a` and `b`: upper half added to lower half, those of `a` before those of `b`.
template <int kHalf, int... kLane>
FASTQAT_INNER Floats folded(Floats a, Floats b, std::integer_sequence<int, kLane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (kLane + (kLane & kHalf ? FASTQAT_WIDTH - kHalf : 0))...) +
         __builtin_shufflevector(a, b, (kLane + (kLane & kHalf ? FASTQAT_WIDTH : kHalf))...);
#else
  return __builtin_shuffle(a, b, Words{(kLane + (kLane & kHalf ? FASTQAT_WIDTH - kHalf : 0))...}) +
         __builtin_shuffle(a, b, Words{(kLane + (kLane & kHalf ? FASTQAT_WIDTH : kHalf))...});
#endif
}

template <int kHalf>
FASTQAT_INNER void fold(Floats* rows) {
  FASTQAT_UNROLLED
  for (int i = 0; i < kHalf; ++i) rows[i] = folded<kHalf>(rows[i], rows[i + kHalf], std::make_integer_sequence<int, FASTQAT_WIDTH>{});
  if constexpr (kHalf > 1) fold<kHalf / 2>(rows);
}

// The sum of each of kLanes sets of lanes: lane l + 8 added to lane l, then l + 4, l + 2, l + 1. Sets share the additions, of which each
// alone would use half a vector, a quarter, and so on.
FASTQAT_INNER void add_lanes(const float (*lanes)[kLanes], float* sums) {
  for (int set = 0; set < kLanes; set += FASTQAT_WIDTH) {
    Floats rows[FASTQAT_WIDTH];
    FASTQAT_UNROLLED
    for (int i = 0; i < FASTQAT_WIDTH; ++i) {
      Floats v[kVectors];
      std::memcpy(v, lanes[set + i], sizeof v);
      FASTQAT_UNROLLED
      for (int half = kVectors / 2; half > 0; half /= 2) {
        FASTQAT_UNROLLED
        for (int j = 0; j < half; ++j) v[j] += v[j + half];
      }
      rows[i] = v[0];
    }
    fold<FASTQAT_WIDTH / 2>(rows);
    std::memcpy(sums + set, rows, sizeof rows[0]);
  }
}

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
FASTQAT_INNER void add_one(const T* x, const T* grad_y, int set, const LaneMask& keep, const Terms& terms, Run<Terms::kSums>& run) {
  FASTQAT_UNROLLED
  for (int j = 0; j < kVectors; ++j) run.add(set, j, load(x + j * FASTQAT_WIDTH), load(grad_y + j * FASTQAT_WIDTH), keep.v[j], terms);
}

// The last `count` of all lanes.
FASTQAT_INNER LaneMask last_lanes(int64_t count) {
  LaneMask mask;
  FASTQAT_UNROLLED
  for (int j = 0; j < kVectors; ++j) {
    Words index;
    FASTQAT_UNROLLED
    for (int l = 0; l < FASTQAT_WIDTH; ++l) index[l] = static_cast<uint32_t>(j * FASTQAT_WIDTH + l);
    mask.v[j] = (Words)(index >= static_cast<uint32_t>(kLanes - count));
  }
  return mask;
}

template <class T>
FASTQAT_INNER const T* row_at(const RowBlock& block, int64_t r) {
  return static_cast<const T*>(block.first) + r * block.step;
}

// The kLanes elements up to the end of row `r` of n: where that many lie before it they are read there, with the ends of other rows.
template <class T>
FASTQAT_INNER const T* row_end(const RowBlock& block, int64_t r, int64_t n, T* copy) {
  const int64_t end = r * block.step + n;
  if (__builtin_expect(end >= kLanes, 1)) return static_cast<const T*>(block.first) + (end - kLanes);
  for (int64_t i = 0; i < kLanes; ++i) copy[i] = i < kLanes - n ? T{} : row_at<T>(block, r)[i - kLanes + n];
  return copy;
}

// What a row of n has beyond whole vectors, which are the lanes `rest`.
template <class T, class Terms>
FASTQAT_INNER void add_rest(const RowBlock& x, const RowBlock& grad_y, int64_t r, int64_t n, const LaneMask& rest, const Terms& terms,
                            Run<Terms::kSums>& run) {
  T copies[2][kLanes];
  add_one(row_end(x, r, n, copies[0]), row_end(grad_y, r, n, copies[1]), 1, rest, terms, run);
}

// The whole vectors of `count` elements of a row.
template <class T, class Terms>
FASTQAT_INNER void add_vectors(const T* x, const T* grad_y, int64_t count, const Terms& terms, Run<Terms::kSums>& run) {
  int64_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) add_two(x + i, grad_y + i, terms, run);
  if (i + kLanes <= count) add_one(x + i, grad_y + i, 0, last_lanes(kLanes), terms, run);
}

// A run of a row.
struct Piece {
  int64_t row, begin;
};

// The sums of `count` pieces, from [k][kPieces].
template <int kSums, int kPieces>
FASTQAT_INNER void add_totals(const float* sums, const Piece* pieces, int count, bool whole_rows, double* totals, int64_t stride) {
  FASTQAT_UNROLLED
  for (int k = 0; k < kSums; ++k, sums += kPieces, totals += stride) {
    if (whole_rows && count == kPieces) {
      for (int i = 0; i < kPieces; ++i) totals[pieces[0].row + i] = sums[i];
    } else {
      for (int i = 0; i < count; ++i) totals[pieces[i].row] = pieces[i].begin == 0 ? sums[i] : totals[pieces[i].row] + sums[i];
    }
  }
}

// `terms` with the shift of each row. Runs are taken in the order of memory, as many at a time as have kLanes sums together. kShort: rows
// of one vector at most.
template <bool kShort, class T, class Terms>
FASTQAT_INNER void add_rows(const RowBlock& x, const RowBlock& grad_y, int64_t n, const float* shift, Terms terms, double* totals,
                            int64_t stride) {
  constexpr int kSums = Terms::kSums, kPieces = kLanes / kSums;
  alignas(64) float lanes[kLanes][kLanes] = {}, sums[kLanes];
  Piece pieces[kPieces], next{0, 0};
  const LaneMask rest = last_lanes(kShort ? n : n % kLanes);
  while (next.row < x.rows) {
    int count = 0;
    for (; count < kPieces && next.row < x.rows; ++count) {
      const auto [row, begin] = pieces[count] = next;
      const int64_t length = n - begin < kRun ? n - begin : kRun;
      Run<kSums> run;
      terms.shift = shift[row];
      if (!kShort) add_vectors(row_at<T>(x, row) + begin, row_at<T>(grad_y, row) + begin, length, terms, run);
      if (kShort || length % kLanes) add_rest<T>(x, grad_y, row, n, rest, terms, run);
      FASTQAT_UNROLLED
      for (int k = 0; k < kSums; ++k) run.store(k, lanes[k * kPieces + count]);
      next = kShort || begin + kRun >= n ? Piece{row + 1, 0} : Piece{row, begin + kRun};
    }
    add_lanes(lanes, sums);
    add_totals<kSums, kPieces>(sums, pieces, count, kShort || n <= kRun, totals, stride);
  }
}

template <class T, class Terms>
FASTQAT_INNER void add_all_rows(const RowBlock& x, const RowBlock& grad_y, int64_t n, const float* shift, const Terms& terms,
                                double* totals, int64_t stride) {
  if (n <= kLanes)
    add_rows<true, T>(x, grad_y, n, shift, terms, totals, stride);
  else
    add_rows<false, T>(x, grad_y, n, shift, terms, totals, stride);
}

template <class T>
FASTQAT_TARGET void row_moments(RowBlock x, int64_t n, const float* shift, double* sums, int64_t stride) {
  add_all_rows<T>(x, x, n, shift, MomentTerms{0}, sums, stride);
}

template <class T>
FASTQAT_TARGET void row_products(RowBlock x, RowBlock grad_y, int64_t n, const float* shift, float limit, double* sums, int64_t stride) {
  add_all_rows<T>(x, grad_y, n, shift, ProductTerms{0, limit}, sums, stride);
}

template <class T>
FASTQAT_TARGET void row_group(RowBlock x, RowBlock grad_y, int64_t n, const float* shift, double* sums, int64_t stride) {
  add_all_rows<T>(x, grad_y, n, shift, GroupTerms{0}, sums, stride);
}
