// An attention tile, Tile<T, X>, is a group (group.h) that holds query columns and iterates over
// tiles of at most kKeys keys and values. Queries are columns throughout, S^T = K Q^T and
// O^T += V^T P^T: the softmax of a query stays within a lane, neither product needs a transposed
// operand in registers, and the scores of one product are the operand of the next. T is the type of
// the operands; X is the kernel body's description of a column. A wave has panels of kColumns
// columns (GPU: one panel).
//
//   kKeys, kBuffers        rows of a key tile; how many tiles are staged at once. With one buffer
//                          the body needs a barrier before deposit, too
//   kGroupColumns          the most columns that a group should have
//   kStreams, stream()     how many tiles the group's waves work on at once, a power of two; which
//                          of so many tiles that follow each other are this wave's
//
//   open(n, x, query, scale)   starts with n columns; column c is described by x(c); its query is
//                          query(X) -> const T*, or null for zeros
//   begin()                a chunk begins: outputs, sums := 0, maxima := -inf. A target that joins no
//                          chunks does so in open only
//   locate(place, n)       begins to look up where row i of a tile of n > 0 rows is, by
//                          place(i) -> int
//   load(key, value, n)    begins to read the located tile: key(place, i), value(place, i) ->
//                          const T*
//   kReadsCodes            whether it also has
//   load_codes(fnuz, key, value, n)
//                          likewise, of fp8: key(place, i), value(place, i) -> CodedRow
//   deposit(n)             the loaded tile becomes the staged one
//   each_panel(f)          f(panel) for every panel of this wave
//     panel.any(f)         whether f(X) holds for any column of the panel
//     scores(panel)        S^T := K Q^T, -inf beyond the staged tile's n rows
//     mask(panel, visible) S^T[i][c] := -inf unless visible(X).from <= i < visible(X).to
//     absorb(panel)        running maximum, rescale, P := exp2(S^T - maximum), rounded to T on a
//                          GPU, sum, O^T += V^T P^T. A column whose scores are all -inf keeps its
//                          zeros
//   settle(chunk, last)    the tiles since `begin` were chunk number `chunk` of the group, which is a
//                          leaf of the tree that AttentionJoin describes: joins what is complete
//   close(f)               f(X, maximum, sum, output) for every column, by one or more threads
//                          each. Results are unnormalised: maximum in powers of 2 (-inf: no finite
//                          score yet), or a number near it from which the sum and the output are
//                          counted; output.store(pointer, scale) writes this thread's part of
//                          scale * O; output.leader() is true for one of a column's threads
#pragma once

#include "tile/group.h"

namespace blockdraft {

// What is subtracted from a column's scores: its maximum, or 0 if that is -inf, because
// (-inf) - (-inf) is NaN.
inline float finite_or_zero(float maximum) { return maximum == -__builtin_inff() ? 0.0f : maximum; }

// Keys and values in pages; strides in elements, of pages and of the keys in one.
template <class T>
struct AttentionCache {
  const int32_t* pages;
  int page_shift;
  const T *keys, *values;
  int64_t key_page, value_page;
  int key_slot, value_slot;
};

// Of a cache of fp8: strides of pages.
struct AttentionScales {
  const float *keys, *values;
  int64_t key_page, value_page;
};

// Joins two parts of the keys of a column, of which each has a maximum, a sum and an output.
struct AttentionJoin {
  float top, left, right;  // the maximum; what the parts are multiplied by

  AttentionJoin(float a, float b)
      : top(most(a, b)),
        left(__builtin_exp2f(a - finite_or_zero(top))),
        right(__builtin_exp2f(b - finite_or_zero(top))) {}
  float operator()(float a, float b) const { return __builtin_fmaf(b, right, a * left); }
};

// Joins up to kMost nodes as a binary tree: 0 with 1, 2 with 3, then these two, and so on. A node
// is `dim` floats of output, its maximum and its sum; they lie `apart` floats from each other.
// Nodes that are not there are nothing, which changes no bit: a GPU has no branches then.
template <int kMost>
class AttentionTree {
  typedef float two __attribute__((vector_size(8)));

 public:
  AttentionTree(const float* nodes, int64_t apart, int count, int dim)
      : apart_(apart), count_(count) {
    each_node(nodes + dim, [&](int i, two x) {
      tops_[i] = i < count ? x[0] : -__builtin_inff();
      sums_[i] = i < count ? x[1] : 0;
    });
    each_join([&](int a, int b) {
      const AttentionJoin both(tops_[a], tops_[b]);
      left_[b] = both.left;
      right_[b] = both.right;
      tops_[a] = both.top;
      sums_[a] = both(sums_[a], sums_[b]);
    });
  }
  float top() const { return tops_[0]; }
  float sum() const { return sums_[0]; }

  // Two elements of the output; `first`: those of the first node.
  void join(const float* first, float* out) const {
    two x[kMost];
    each_node(first, [&](int i, two own) { x[i] = i < count_ ? own : two{}; });
    each_join([&](int a, int b) {
      for (int j = 0; j < 2; ++j) x[a][j] = __builtin_fmaf(x[b][j], right_[b], x[a][j] * left_[b]);
    });
    __builtin_memcpy(out, x, sizeof *x);
  }

 private:
  template <class F>
  void each_node(const float* at, F f) const {
#pragma GCC unroll 16
    for (int i = 0; i < kMost; ++i) {
      two x;
      __builtin_memcpy(&x, at, sizeof x);
      f(i, x);
      if (i + 1 < count_) at += apart_;
    }
  }
  template <class F>
  static void each_join(F f) {
#pragma GCC unroll 4
    for (int step = 1; step < kMost; step *= 2)
#pragma GCC unroll 8
      for (int b = step; b < kMost; b += 2 * step) f(b - step, b);
  }

  int64_t apart_;
  int count_;
  float tops_[kMost], sums_[kMost], left_[kMost], right_[kMost];
};

// A row of fp8, e4m3fn or e4m3fnuz, and the scale of its numbers.
struct CodedRow {
  const uint8_t* codes;
  const float* scale;
};

template <class T>
struct AttentionExample {
  struct Span {
    int from, to;
  };
  template <class X>
  static const T* query(const X&) {
    return nullptr;
  }
  static int place(int) { return 0; }
  static const T* row(int, int) { return nullptr; }
  template <class X>
  static bool holds(const X&) {
    return true;
  }
  template <class X>
  static Span visible(const X&) {
    return {0, 0};
  }
  struct Column {
    template <class X, class Output>
    void operator()(const X&, float, float, Output output) const {
      if (output.leader()) output.store(static_cast<T*>(nullptr), 1.0f);
    }
  };
  struct Panel {
    template <class P>
    void operator()(P&) const {}
  };
};

template <class Tile, class T, class X>
concept AttentionTarget =
    GroupTarget<Tile> &&
    requires(Tile tile, int n, typename Tile::Panel panel, X (*describe)(int)) {
      Tile::kKeys + Tile::kBuffers + Tile::kGroupColumns + Tile::kReadsCodes + Tile::kStreams;
      tile.stream() + 1;
      tile.open(n, describe, AttentionExample<T>::template query<X>, 1.0f);
      tile.begin();
      tile.locate(AttentionExample<T>::place, n);
      tile.load(AttentionExample<T>::row, AttentionExample<T>::row, n);
      tile.deposit(n);
      tile.each_panel(typename AttentionExample<T>::Panel());
      panel.any(AttentionExample<T>::template holds<X>);
      tile.scores(panel);
      tile.mask(panel, AttentionExample<T>::template visible<X>);
      tile.absorb(panel);
      tile.settle(n, true);
      tile.close(typename AttentionExample<T>::Column());
    };

}  // namespace blockdraft
