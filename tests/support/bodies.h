// Small kernel bodies that each use a few primitives of the tile layer, for comparison with numpy.
#pragma once

#include "tile/attention.h"
#include "tile/gemm.h"

namespace blockdraft {

struct TestColumn {
  int index, from, to;
};

// Calls absorb(panel, start) for every panel and tile of m > 0 rows of k and v.
template <class Tile, class T, class Absorb>
void walk(Tile& tile, const T* k, const T* v, int m, int depth, Absorb absorb) {
  auto count = [&](int start) { return least(m - start, Tile::kKeys); };
  auto locate = [&](int start) { tile.locate([](int i) { return i; }, count(start)); };
  auto load = [&](int start) {
    tile.load([&](int place, int) { return k + int64_t(start + place) * depth; },
              [&](int place, int) { return v + int64_t(start + place) * depth; }, count(start));
  };
  locate(0);
  load(0);
  for (int start = 0; start < m; start += Tile::kKeys) {
    const int next = start + Tile::kKeys < m ? start + Tile::kKeys : start;
    locate(next);
    if constexpr (Tile::kBuffers == 1) tile.barrier();
    tile.deposit(count(start));
    tile.barrier();
    load(next);
    tile.each_panel([&](auto& panel) { absorb(panel, start); });
  }
}

// y[c][i] = gate * (up + bias[i]), where gate and up are the products of rows 2i and 2i + 1 of w
// with token tokens[c] of x. At most kGroupColumns columns.
template <class Gemm, class T>
void gated_product(Gemm& gemm, const T* w, const T* x, const int* tokens, const float* bias,
                   float* y, int rows, int columns, int depth) {
  for (int first = 0; first < rows; first += Gemm::kRows) {
    gemm.multiply(
        least(rows - first, Gemm::kRows), columns, depth,
        [&](int i) { return w + int64_t(first + i) * depth; },
        [&](int c) { return x + int64_t(tokens[c]) * depth; },
        [&](int i, int c, auto sums) {
          const auto [gate, up] = Gemm::unzip(sums);
          for (int j = first + i; j < least(first + i + Gemm::kEpilogueRows, rows); j += 2) {
            const int k = (j - first - i) / 2;
            y[int64_t(c) * (rows / 2) + j / 2] = gate[k] * (up[k] + bias[j / 2]);
          }
        });
    gemm.barrier();
  }
}

// Softmax attention of n columns, column c over keys from[c] .. to[c] - 1 of m: unnormalised output
// [n][depth], maximum and sum.
template <class Tile, class T>
void attend(Tile& tile, const T* q, const T* k, const T* v, const int* from, const int* to,
            float* out, float* top, float* sum, int m, int n, int depth, float scale) {
  tile.open(
      n, [&](int i) { return TestColumn{i, from[i], to[i]}; },
      [&](const TestColumn& x) { return x.to > x.from ? q + int64_t(x.index) * depth : nullptr; },
      scale);
  tile.begin();
  walk(tile, k, v, m, depth, [&](auto& panel, int start) {
    if (!panel.any(
            [&](const TestColumn& x) { return x.from < start + Tile::kKeys && x.to > start; }))
      return;
    struct Span {
      int from, to;
    };
    tile.scores(panel);
    tile.mask(panel, [&](const TestColumn& x) { return Span{x.from - start, x.to - start}; });
    tile.absorb(panel);
  });
  tile.close([&](const TestColumn& x, float column_top, float column_sum, auto output) {
    output.store(out + int64_t(x.index) * depth, 1.0f);
    if (!output.leader()) return;
    top[x.index] = column_top;
    sum[x.index] = column_sum;
  });
}

// out[i] = T(x[i]); after a barrier the leader sets *count to the number of elements that are not
// 0.
template <class Group, class T>
void copy_and_count(Group& group, const float* x, T* out, int n, int* count) {
  group.each(n, [&](int i) { Group::store(out + i, x[i]); });
  group.barrier();
  if (!group.leader()) return;
  int found = 0;
  for (int i = 0; i < n; ++i) {
    T zero;
    Group::store(&zero, 0.0f);
    found += __builtin_memcmp(out + i, &zero, sizeof(T)) != 0;
  }
  *count = found;
}

}  // namespace blockdraft
