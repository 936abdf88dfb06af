// A row of logits by a group of threads: tiles of it in registers, and what one thread sums over them. Sums are relative to the largest
// logit that the thread has seen, which never enters them, and move with it; at the end all threads move to that of the row. So each row
// is read once, whatever its length. Terms are fp32, sums of a tile fp32, sums of tiles and of threads fp64 in fixed order.
#pragma once

#include <cstdint>
#include <limits>

#include "sums.h"
#include "types.h"

namespace fastqat::logits {

constexpr int kChunk = 8;  // neighbouring classes of a thread: one or two 128-bit accesses
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kFar = -1e9f;  // exp is 0 here, and 0 times it is not NaN

struct Matrix {
  const void* data;  // null: not given
  int64_t step;      // elements from row to row
  Storage storage;
  bool vectors;  // every row begins on a 128-bit boundary
};

// Where a thread's chunks of a tile lie in the row, at most kChunks. All threads of a group have as many; some may lie behind the row.
template <int kChunks>
struct Span {
  int64_t first, step, classes;
  int chunks;
};

// lanes = 1 << shift threads for a row, a warp at most or the whole block.
template <int kChunks>
__device__ __forceinline__ Span<kChunks> span_of(int64_t begin, int64_t classes, int lane, int shift) {
  const int64_t step = int64_t{kChunk} << shift, left = (classes - begin + step - 1) / step;
  return {begin + int64_t{lane} * kChunk, step, classes, static_cast<int>(left < kChunks ? left : kChunks)};
}

// body(span) for tile after tile of a row.
template <int kChunks, class Body>
__device__ __forceinline__ void for_tiles(int64_t classes, int lane, int shift, const Body& body) {
#pragma unroll 1
  for (int64_t begin = 0; begin < classes; begin += int64_t{kChunks * kChunk} << shift) body(span_of<kChunks>(begin, classes, lane, shift));
}

template <int kChunks>
struct Tile {
  float at[kChunks][kChunk];
};

// kChunk neighbours from class `c` of a row; beyond its end `padding`.
template <class T>
__device__ __forceinline__ void read_chunk(const T* row, bool vectors, int64_t c, int64_t classes, T padding, Pack<T, kChunk>& pack) {
  using Word = typename Pack<T, kChunk>::word;
  if (vectors && c + kChunk <= classes) {
#pragma unroll
    for (int w = 0; w < Pack<T, kChunk>::kWords; ++w) pack.words[w] = reinterpret_cast<const Word*>(row + c)[w];
  } else {
    const int count = classes - c < kChunk ? static_cast<int>(classes - c) : kChunk;
#pragma unroll
    for (int j = 0; j < kChunk; ++j) pack.at[j] = j < count ? row[c + j] : padding;
  }
}

// All loads are issued before the first value is used.
template <class T, int kChunks>
__device__ __forceinline__ void read_tile(const T* row, bool vectors, const Span<kChunks>& span, float beyond, Tile<kChunks>& tile) {
  const T padding = narrow<T>(beyond);
  Pack<T, kChunk> packs[kChunks];
#pragma unroll
  for (int k = 0; k < kChunks; ++k)
    if (k < span.chunks) read_chunk(row, vectors, span.first + k * span.step, span.classes, padding, packs[k]);
#pragma unroll
  for (int k = 0; k < kChunks; ++k)
    if (k < span.chunks)
#pragma unroll
      for (int j = 0; j < kChunk; ++j) tile.at[k][j] = widen(packs[k].at[j]);
}

// body(pointer to the first element of a row).
template <class Body>
__device__ __forceinline__ void with_row(const Matrix& matrix, int64_t row, const Body& body) {
  switch (matrix.storage) {
    case Storage::float32:
      return body(static_cast<const float*>(matrix.data) + row * matrix.step);
    case Storage::bfloat16:
      return body(static_cast<const __nv_bfloat16*>(matrix.data) + row * matrix.step);
    case Storage::float16:
      return body(static_cast<const __half*>(matrix.data) + row * matrix.step);
  }
}

template <int kChunks>
__device__ __forceinline__ void load_tile(const Matrix& matrix, int64_t row, const Span<kChunks>& span, Tile<kChunks>& tile,
                                          float beyond = -kInfinity) {
  with_row(matrix, row, [&](auto* data) { read_tile(data, matrix.vectors, span, beyond, tile); });
}

__device__ __forceinline__ float load_one(const Matrix& matrix, int64_t row, int64_t c) {
  float value = 0;
  with_row(matrix, row, [&](auto* data) { value = widen(data[c]); });
  return value;
}

// body(chunk, j) for the thread's part of a tile.
template <int kChunks, class Body>
__device__ __forceinline__ void for_tile(const Span<kChunks>& span, const Body& body) {
#pragma unroll
  for (int k = 0; k < kChunks; ++k)
    if (k < span.chunks)
#pragma unroll
      for (int j = 0; j < kChunk; ++j) body(k, j);
}

// Hides where a value comes from, so that what is computed from it again is not kept in registers instead.
__device__ __forceinline__ void forget(float& value) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+f"(value));
#endif
}

// The two largest, and the first place of the largest.
struct Largest {
  float top, second;
  int64_t place;
};

__device__ __forceinline__ Largest from_lane(const Largest& own, int offset) {
  return {fastqat::from_lane(own.top, offset), fastqat::from_lane(own.second, offset), fastqat::from_lane(own.place, offset)};
}

__device__ __forceinline__ Largest larger(const Largest& a, const Largest& b) {
  const bool first = a.top > b.top || (a.top == b.top && a.place < b.place);
  return {fmaxf(a.top, b.top), fmaxf(fmaxf(a.second, b.second), fminf(a.top, b.top)), first ? a.place : b.place};
}

template <int kChunks>
__device__ __forceinline__ Largest largest_of(const Tile<kChunks>& tile, const Span<kChunks>& span) {
  Largest found{-kInfinity, -kInfinity, 0};
  for_tile(span, [&](int k, int j) {
    const float z = tile.at[k][j];
    found.second = fmaxf(found.second, fminf(found.top, z));
    found.top = fmaxf(found.top, z);
  });
  return found;
}

// The first class of a tile with this value, which one has.
template <int kChunks>
__device__ __forceinline__ int64_t place_of(float value, const Tile<kChunks>& tile, const Span<kChunks>& span) {
  int place = 0;
#pragma unroll
  for (int i = kChunks * kChunk - 1; i >= 0; --i)
    if (i / kChunk < span.chunks) place = tile.at[i / kChunk][i % kChunk] == value ? i : place;
  return span.first + place / kChunk * span.step + place % kChunk;
}

// What is largest in a tile or was before.
template <int kChunks>
__device__ __forceinline__ Largest with_tile(const Largest& before, const Tile<kChunks>& tile, const Span<kChunks>& span) {
  const Largest here = largest_of(tile, span);
  if (here.top > before.top) return {here.top, fmaxf(here.second, before.top), place_of(here.top, tile, span)};
  return {before.top, fmaxf(before.second, here.top), before.place};
}

template <int kThreads>
__device__ __forceinline__ Largest largest_of_row(const Largest& own, int lanes) {
  return fold_lanes<kThreads>(own, lanes, [](const Largest& a, const Largest& b) { return larger(a, b); });
}

// What terms are relative to; a thread that has seen nothing but masked classes has no largest logit.
__device__ __forceinline__ float base_of(float top) { return top == -kInfinity ? 0.0f : top; }

// How far sums move down when a larger logit is met.
__device__ __forceinline__ float way(float from, float to) { return fminf(fmaxf(base_of(from) - to, kFar), 0.0f); }

// exp of what is not positive. Error 2 units in the last place and half a unit of x: 2e-6 where terms of 1e-12 count.
__device__ __forceinline__ float exp_nonpositive(float x) { return __expf(x); }

enum { kTies, kRest, kRestSq, kWeighted };  // of e = exp(z - top): how many are 1; sums below the top of e, e^2 and e (z - top)

struct Student {
  Largest largest{-kInfinity, -kInfinity, 0};
  Sums<4> sums{};

  __device__ __forceinline__ double total() const { return sums.at[kTies] + sums.at[kRest]; }
  __device__ __forceinline__ double rest() const { return sums.at[kTies] - 1 + sums.at[kRest]; }  // total - 1

  __device__ __forceinline__ float move(float top) {
    const float by = way(largest.top, top);
    const double scale = expf(by), all = total();
    sums.at[kWeighted] = scale * (sums.at[kWeighted] + all * by);
    sums.at[kRestSq] = scale * scale * (sums.at[kRestSq] + sums.at[kTies]);
    sums.at[kRest] = scale * all;
    sums.at[kTies] = 0;
    largest.top = top;
    return by;
  }

  // How far the sums moved.
  template <int kChunks>
  __device__ __forceinline__ float add(const Tile<kChunks>& tile, const Span<kChunks>& span) {
    const Largest next = with_tile(largest, tile, span);
    const float by = next.top > largest.top ? move(next.top) : 0.0f;
    largest = next;
    const float base = base_of(largest.top);
    float ties = 0, rest = 0, rest_sq = 0, weighted = 0;
    for_tile(span, [&](int k, int j) {
      const float d = tile.at[k][j] - base, e = exp_nonpositive(d);
      const float below = d >= 0.0f ? 0.0f : e;  // NaN goes into the sum
      ties += d >= 0.0f ? 1.0f : 0.0f;
      rest += below;
      rest_sq = __fmaf_rn(below, below, rest_sq);
      weighted = e > 0.0f ? __fmaf_rn(e, d, weighted) : weighted;
    });
    sums.at[kTies] += ties;
    sums.at[kRest] += rest;
    sums.at[kRestSq] += rest_sq;
    sums.at[kWeighted] += weighted;
    return by;
  }

  // From a thread's to the row's; NaN where the largest logit is none: a row of NaN, of -inf, or with +inf. How far the sums moved.
  template <int kThreads>
  __device__ __forceinline__ float fold(int lanes) {
    const Largest row = largest_of_row<kThreads>(largest, lanes);
    const float by = row.top > largest.top ? move(row.top) : 0.0f;
    largest = row;
    sums = sum_lanes<kThreads>(sums, lanes);
    sums.at[kRest] += static_cast<double>(row.top) - row.top;
    return by;
  }
};

// |p - y| at the class `target`: (sum of p_j)^2 + sum of p_j^2 over the others. Where the target is not on top one of the others is, with
// e = 1, so that taking e of the target out of the sums cancels nothing.
__device__ __forceinline__ double error_norm(const Student& row, float target_logit) {
  const float d = target_logit - row.largest.top;
  const double e = d >= 0 ? 1.0f : expf(d);  // NaN stays
  const double others = row.sums.at[kRest] + (row.sums.at[kTies] - e);
  return sqrt(others * others + row.sums.at[kRestSq] + (row.sums.at[kTies] - e * e)) / row.total();
}

// data null: not given.
inline Matrix make_matrix(const void* data, int64_t step, Storage storage) {
  const int64_t row_bytes = step * (storage == Storage::float32 ? 4 : 2);
  return {data, step, storage, on_boundary(data) && row_bytes % 16 == 0};
}

// log2 of the threads for a row: one for each chunk up to a warp, then, beyond what a warp takes, the whole block.
inline int shift_of(int64_t classes, int64_t warp_classes, int threads) {
  int shift = 0;
  while (shift < 5 && (int64_t{kChunk} << shift) < classes) ++shift;
  while (classes > warp_classes && (1 << shift) < threads) ++shift;
  return shift;
}

}  // namespace fastqat::logits
