// From tensors as their sizes and strides to jobs, and to the tiles that suit a shape. The cut depends on the shape of one sample only,
// never on the device or on the number of samples.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <stdexcept>

#include "grad_norm_direct.h"
#include "grad_norm_gram.h"

namespace fastqat::grad_norm {

// [N, C, D, H, W] in elements, any strides.
struct Array {
  const void* data;
  int64_t size[5], stride[5];
};

// As the operators take it: 13 numbers.
struct Geometry {
  int64_t groups, kernel[3], stride[3], padding[3], dilation[3];
};

constexpr Geometry kPlain{1, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, {1, 1, 1}};  // how grad_y is read

inline int as_int(int64_t number) {
  if (number >= 0 && number < INT_MAX / 4) return static_cast<int>(number);
  throw std::runtime_error("grad_sq_norm: sizes, strides, padding and dilation of a convolution must be below 2^29");
}

inline bool on_boundaries(const Array& a, int vector, std::initializer_list<int> dims) {
  bool all = on_boundary(a.data);
  for (const int dim : dims) all = all && (a.size[dim] < 2 || a.stride[dim] % vector == 0);
  return all;
}

// Positions lie one after the other, and each is a position of the output.
inline bool one_to_one(const Array& a, const Geometry& g) {
  int64_t next = 1;
  bool all = true;
  for (int dim = 4; dim >= 2; --dim) {
    all = all && g.kernel[dim - 2] == 1 && g.stride[dim - 2] == 1 && g.padding[dim - 2] == 0 && (a.size[dim] < 2 || a.stride[dim] == next);
    next *= a.size[dim];
  }
  return all && next > 1;
}

inline Access access_of(const Array& a, const Geometry& g, int vector) {
  const bool packed = a.stride[1] == 1 || a.size[1] < 2;
  if (packed && a.size[1] / g.groups % vector == 0 && on_boundaries(a, vector, {0, 2, 3, 4})) return Access::channel_vectors;
  const int64_t positions = a.size[2] * a.size[3] * a.size[4];
  if (one_to_one(a, g) && positions % vector == 0 && on_boundaries(a, vector, {0, 1})) return Access::position_vectors;
  const int fastest = a.size[4] > 1 ? 4 : a.size[3] > 1 ? 3 : 2;
  return a.size[fastest] < 2 || (a.size[1] > 1 && a.stride[1] < a.stride[fastest]) ? Access::channels : Access::positions;
}

inline Operand operand_of(const Array& a, const Geometry& g, int vector) {
  const int64_t channels = a.size[1] / g.groups;
  Operand o{a.data, a.stride[0], a.stride[1], {}, {}, {}, {}, {}, channels * g.kernel[0] * g.kernel[1] * g.kernel[2], {}, {}, {}, {}};
  for (int i = 0; i < 3; ++i) {
    o.spatial[i] = a.stride[i + 2];
    o.size[i] = as_int(a.size[i + 2]);
    o.step[i] = as_int(g.stride[i]);
    o.padding[i] = as_int(g.padding[i]);
    o.dilation[i] = as_int(g.dilation[i]);
    as_int((g.kernel[i] - 1) * g.dilation[i]);
  }
  o.channels = Divider(std::max<int64_t>(1, channels));
  o.kernel_height = Divider(g.kernel[1]);
  o.kernel_width = Divider(g.kernel[2]);
  o.access = access_of(a, g, vector);
  return o;
}

struct Plan {
  Storage storage;
  int64_t samples, outputs, groups;
  Operand grad_y, x;
  Positions positions;

  bool empty() const { return samples == 0 || grad_y.columns == 0 || x.columns == 0 || positions.count == 0; }
};

inline Plan make_plan(const Array& x, const Array& grad_y, const Geometry& geometry, Storage storage) {
  const int vector = vector_of(storage);
  Geometry plain = kPlain;
  plain.groups = geometry.groups;
  const int64_t* const size = grad_y.size;
  const Positions positions{size[2] * size[3] * size[4], Divider(std::max<int64_t>(1, size[3])), Divider(std::max<int64_t>(1, size[4]))};
  return {storage, size[0], size[1], geometry.groups, operand_of(grad_y, plain, vector), operand_of(x, geometry, vector), positions};
}

template <class Tile>
int64_t padded(const Plan& plan) {
  return divide_up(plan.groups, Tile::kGroups) * Tile::kGroups * divide_up(plan.grad_y.columns, Tile::kRows) * Tile::kRows *
         divide_up(plan.x.columns, Tile::kColumns) * Tile::kColumns;
}

// body(Type<Tile>) with the tile that costs least, by instructions counted per product: loading and sharing weigh more in small ones.
template <class Body>
void with_direct_tile(const Plan& plan, const Body& body) {
  const double costs[] = {1.0 * padded<WideTile>(plan), 1.6 * padded<SmallTile>(plan), 4.0 * padded<GroupTile>(plan),
                          13.0 * padded<DepthwiseTile>(plan)};
  switch (std::min_element(costs, costs + 4) - costs) {
    case 0:
      return body(Type<WideTile>{});
    case 1:
      return body(Type<SmallTile>{});
    case 2:
      return body(Type<GroupTile>{});
    default:
      return body(Type<DepthwiseTile>{});
  }
}

template <class Tile>
DirectCut cut_direct(const Plan& plan) {
  const int64_t groups = divide_up(plan.groups, Tile::kGroups), rows = divide_up(plan.grad_y.columns, Tile::kRows);
  const int64_t columns = divide_up(plan.x.columns, Tile::kColumns);
  return {plan.samples * groups * rows * columns, Divider(groups), Divider(rows), Divider(columns)};
}

constexpr int64_t kFewPositions = 32;
constexpr int64_t kLeastPart = 1024;  // columns of x in a part of the depth: every part forms the products of grad_y again

template <class Body>
void with_gram_tile(const Plan& plan, const Body& body) {
  plan.positions.count > kFewPositions ? body(Type<GramTile>{}) : body(Type<FewTile>{});
}

template <class Tile>
GramCut cut_gram(const Plan& plan) {
  const int64_t side = divide_up(plan.positions.count, Tile::kRows), tiles = side * (side + 1) / 2;
  const int64_t least = std::max(kLeastPart, 4 * plan.grad_y.columns);
  const int64_t part = divide_up(divide_up(plan.x.columns, std::max<int64_t>(1, plan.x.columns / least)), Tile::kChunk) * Tile::kChunk;
  const int64_t parts = divide_up(plan.x.columns, part);
  return {plan.samples * plan.groups * parts * tiles, side, part, Divider(plan.groups), Divider(parts), Divider(tiles)};
}

}  // namespace fastqat::grad_norm
