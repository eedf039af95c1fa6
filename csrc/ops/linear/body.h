// Rows times a matrix: the kernel body, written against the tile layer.
#pragma once

#include "ops/linear/params.h"
#include "tile/gemm.h"

namespace blockdraft {

enum class LinearStep { kMultiply };

// Calls run<step>(groups) for each launch, where a group multiplies tiles of `rows` channels by
// `columns` rows of x.
template <class T, class Run>
void schedule(const LinearParams<T>& p, int rows, int columns, Run run) {
  const int64_t tiles = ceil_div(p.outputs, rows);
  run.template operator()<LinearStep::kMultiply>(tiles * ceil_div(p.rows, columns));
}

// The tile `id` of `rows` channels. Tiles that share weights follow each other.
template <class Gemm, class T>
void linear(Gemm& gemm, const LinearParams<T>& p, int64_t id, int rows) {
  const int chunks = ceil_div(p.rows, Gemm::kGroupColumns);
  const int first = int(id / chunks) * rows;
  const auto [row, columns] = part_of(p.rows, chunks, int(id % chunks));
  const int channels = least(p.outputs - first, rows);
  gemm.multiply(
      channels, columns, p.inputs, [&](int i) { return p.weight.at(first + i); },
      [&, row = row](int c) { return p.x.at(row + c); },
      [&, row = row](int i, int c, auto y) {
        const int channel = first + i, count = channels - i;
        if (p.bias) y += Gemm::values(p.bias + channel, count);
        Gemm::store(p.out.at(row + c) + channel, y, count);
      });
}

}  // namespace blockdraft
