// Small kernel bodies that use one or a few primitives of the tile layer each, for comparison with numpy.
#pragma once

#include "tile/tile.h"

namespace blockdraft {

struct TestColumn {
  int index, from, to;
};

// c[m][n] = scale * a[m][depth] b[n][depth]^T, with at most Tile::kGroupColumns columns n.
template <class Tile, class T>
void gemm(Tile& tile, const T* a, const T* b, float* c, int m, int n, int depth, float scale) {
  tile.open(n, [](int i) { return TestColumn{i, 0, 0}; }, [&](const TestColumn& x) { return b + int64_t(x.index) * depth; }, scale);
  auto row = [&](int start) { return [=](int i) { return a + int64_t(start + i) * depth; }; };
  auto count = [&](int start) { return most(least(m - start, Tile::kKeys), 0); };
  tile.locate(row(0), row(0), count(0));
  tile.load();
  for (int start = 0; start < m; start += Tile::kKeys) {
    tile.locate(row(start + Tile::kKeys), row(start + Tile::kKeys), count(start + Tile::kKeys));
    if constexpr (Tile::kBuffers == 1) tile.barrier();
    tile.deposit();
    tile.barrier();
    tile.load();
    tile.each_panel([&](auto& panel) {
      tile.scores(panel);
      tile.each_score(panel, [&](int i, const TestColumn& x, float s) { c[int64_t(start + i) * n + x.index] = s; });
    });
  }
}

// Softmax attention of n columns, each over rows from[c] .. to[c] of m keys: unnormalised output [n][depth], maximum and sum.
template <class Tile, class T>
void attend(Tile& tile, const T* q, const T* k, const T* v, const int* from, const int* to, float* out, float* top, float* sum,
            int m, int n, int depth, float scale) {
  tile.open(n, [&](int i) { return TestColumn{i, from[i], to[i]}; },
            [&](const TestColumn& x) { return x.to > x.from ? q + int64_t(x.index) * depth : nullptr; }, scale);
  auto row = [&](const T* operand, int start) { return [=](int i) { return operand + int64_t(start + i) * depth; }; };
  auto count = [&](int start) { return most(least(m - start, Tile::kKeys), 0); };
  tile.locate(row(k, 0), row(v, 0), count(0));
  tile.load();
  for (int start = 0; start < m; start += Tile::kKeys) {
    const int next = start + Tile::kKeys;
    tile.locate(row(k, next), row(v, next), count(next));
    if constexpr (Tile::kBuffers == 1) tile.barrier();
    tile.deposit();
    tile.barrier();
    tile.load();
    tile.each_panel([&](auto& panel) {
      if (!panel.any([&](const TestColumn& x) { return x.from < next && x.to > start; })) return;
      struct Span { int from, to; };
      tile.scores(panel);
      tile.mask(panel, [&](const TestColumn& x) { return Span{x.from - start, x.to - start}; });
      tile.absorb(panel);
    });
  }
  tile.close([&](const TestColumn& x, float column_top, float column_sum, auto output) {
    output.store(out + int64_t(x.index) * depth, 1.0f);
    if (output.leader()) top[x.index] = column_top, sum[x.index] = column_sum;
  });
}

// out[i] = T(x[i]); then, behind a barrier, the leader counts the elements of x that are not 0 in `count`.
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
