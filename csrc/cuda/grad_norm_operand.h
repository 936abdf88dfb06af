// The two operands of a per-sample gradient as matrices that are never stored: x unfolded, grad_y as it is. A column is a channel of a
// group at a tap of the kernel (tap slowest), a row an output position; an element's place is the sum of the places of both.
#pragma once

#include <climits>

#include "divider.h"
#include "types.h"

namespace fastqat::grad_norm {

// What lies side by side in memory, and whether whole vectors of it do, on boundaries of 128 bits.
enum class Access { channels, positions, channel_vectors, position_vectors };

struct Operand {
  const void* data;
  int64_t sample, channel, spatial[3];  // elements from one to the next
  int size[3], step[3], padding[3], dilation[3];
  int64_t columns;  // of a group
  Divider channels, kernel_height, kernel_width;
  Access access;
};

struct Positions {
  int64_t count;
  Divider height, width;
};

// Where a row or a column lies: elements from the beginning of the sample, and coordinates.
struct Place {
  int64_t offset;
  int at[3];
};

// No other place brings its coordinate back into the tensor.
__device__ __forceinline__ Place nowhere() { return {0, {INT_MIN / 2, 0, 0}}; }

__device__ __forceinline__ Place place_at(const Operand& o, int64_t offset, int d, int h, int w) {
  return {offset + d * o.spatial[0] + h * o.spatial[1] + w * o.spatial[2], {d, h, w}};
}

__device__ __forceinline__ Place position_place(const Operand& o, const Positions& positions, int64_t position) {
  if (position >= positions.count) return nowhere();
  int64_t w = position, h = positions.width.split(w);
  const int64_t d = positions.height.split(h);
  return place_at(o, 0, static_cast<int>(d) * o.step[0] - o.padding[0], static_cast<int>(h) * o.step[1] - o.padding[1],
                  static_cast<int>(w) * o.step[2] - o.padding[2]);
}

__device__ __forceinline__ Place column_place(const Operand& o, int64_t group, int64_t column) {
  if (column >= o.columns) return nowhere();
  int64_t channel = column, w = o.channels.split(channel), h = o.kernel_width.split(w);
  const int64_t d = o.kernel_height.split(h);
  return place_at(o, (group * o.channels.d + channel) * o.channel, static_cast<int>(d) * o.dilation[0], static_cast<int>(h) * o.dilation[1],
                  static_cast<int>(w) * o.dilation[2]);
}

// W neighbours: one access, zeros where the place is outside of the tensor (in the padding, or behind the last row or column).
template <class T, int W>
__device__ __forceinline__ Pack<T, W> load_at(const T* sample, const Operand& o, const Place& a, const Place& b) {
  bool inside = true;
#pragma unroll
  for (int i = 0; i < 3; ++i) inside &= static_cast<unsigned>(a.at[i] + b.at[i]) < static_cast<unsigned>(o.size[i]);
  if (inside) return load_pack<W>(sample + a.offset + b.offset);
  Pack<T, W> zeros;
  zeros.words[0] = {};
  return zeros;
}

}  // namespace fastqat::grad_norm
