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
//
//   open(n, x, query, scale)   starts with n columns; column c is described by x(c); its query is
//                          query(X) -> const T*, or null for zeros. Outputs, sums := 0, maxima :=
//                          -inf
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
//   close(f)               f(X, maximum, sum, output) for every column, by one or more threads
//                          each. Results are unnormalised: maximum in powers of 2 (-inf: no finite
//                          score yet); output.store(pointer, scale) writes this thread's part of
//                          scale * O; output.leader() is true for one of a column's threads
#pragma once

#include "tile/group.h"

namespace blockdraft {

// What is subtracted from a column's scores: its maximum, or 0 if that is -inf, because
// (-inf) - (-inf) is NaN.
inline float finite_or_zero(float maximum) { return maximum == -__builtin_inff() ? 0.0f : maximum; }

// A row of fp8, e4m3fn or e4m3fnuz, and the scale of its numbers.
struct CodedRow {
  const uint8_t* codes;
  float scale;
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
      Tile::kKeys + Tile::kBuffers + Tile::kGroupColumns + Tile::kReadsCodes;
      tile.open(n, describe, AttentionExample<T>::template query<X>, 1.0f);
      tile.locate(AttentionExample<T>::place, n);
      tile.load(AttentionExample<T>::row, AttentionExample<T>::row, n);
      tile.deposit(n);
      tile.each_panel(typename AttentionExample<T>::Panel());
      panel.any(AttentionExample<T>::template holds<X>);
      tile.scores(panel);
      tile.mask(panel, AttentionExample<T>::template visible<X>);
      tile.absorb(panel);
      tile.close(typename AttentionExample<T>::Column());
    };

}  // namespace blockdraft
