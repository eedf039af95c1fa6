// The tile layer: what a kernel body may use. A body is written once, as a template over a target,
// and compiled for each: host.h (vector extensions, one thread), cdna.h (MFMA, gfx942 and gfx950)
// and sim.h (several waves in shuffled order between barriers on poisoned memory, for tests).
//
// A *group* (host: a thread; GPU: a workgroup) works on one item; every wave of it runs the body.
// All targets have
//
//   group.each(n, f)       f(i) for i < n, each by exactly one thread of the group
//   group.each(m, n, f)    f(i, j) for i < m, j < n, likewise
//   group.combine(n, m, weight, term, f)   f(i, sum over s < m of weight(s) * term(s)[i]) for i <
//   n, in the order of s Group::uniform(x)      x, which is the same in all threads of the group
//   group.leader()         true for one thread of the group
//   Group::store(p, x)     *p := x rounded to nearest
//   group.barrier()        what the group's threads wrote before is visible to all of them after
//
// An attention tile, Tile<T, X>, is a group that holds query columns and walks over tiles of at
// most kKeys keys and values. Queries are columns throughout, S^T = K Q^T and O^T += V^T P^T: the
// softmax of a query stays within a lane, neither product needs a transposed operand in registers,
// and the scores of one product are the operand of the next. T is the type of the operands; X is
// the body's own description of a column. A wave has panels of kColumns columns (GPU: one panel).
//
//   kKeys, kBuffers        rows of a key tile; staged tiles at a time: with one, a barrier stands
//   before deposit as well kGroupColumns          columns that a group should have at most
//
//   open(n, x, query, scale)   n columns; column c is described by x(c); its query is query(X) ->
//   const T*, or null for zeros.
//                              Outputs, sums := 0
//   locate(place, n)       place(i) -> int begins to look up where row i of a tile of n > 0 rows is
//   load(key, value, n)    begins to read the located tile: key(place, i), value(place, i) -> const
//   T* deposit(n)             the loaded tile becomes the staged one each_panel(f) f(panel) for
//   every panel of this wave
//     panel.any(f)             whether f(X) holds for a column of the panel
//     scores(panel)            S^T := K Q^T, -inf beyond the staged tile's n rows
//     mask(panel, visible)     S^T[i][c] := -inf but for visible(X).from <= i < visible(X).to
//     each_score(panel, f)     f(i, X, S^T[i][c]) by the score's thread (a product's result, where
//     that is what is wanted) absorb(panel)            running maximum, rescale, P := exp2(S^T -
//     maximum), rounded to T on a GPU, sum, O^T += V^T P^T
//   close(f)                   f(X, maximum, sum, output) for every column, by one or more threads
//   each. Results are
//                              unnormalised: maximum in powers of 2, and output.store(pointer,
//                              scale) writes this thread's part of scale * O; output.leader() is
//                              true for one of a column's threads
#pragma once

#include <stdint.h>

namespace blockdraft {

// 16-bit floating point as stored; arithmetic is fp32.
struct bf16 {
  uint16_t bits;
};
struct fp16 {
  uint16_t bits;
};

constexpr float kLowest =
    -1e30f;  // below every score, and finite: (-inf) - kLowest is -inf, not NaN

template <class N>
constexpr N least(N a, N b) {
  return a < b ? a : b;
}
template <class N>
constexpr N most(N a, N b) {
  return a > b ? a : b;
}
template <class N>
constexpr N ceil_div(N a, N b) {
  return (a + b - 1) / b;
}

// Element i of combine's sum, where a thread does whole elements.
template <class Weight, class Term>
float weighted_sum(int i, int terms, Weight weight, Term term) {
  float total = 0;
  for (int s = 0; s < terms; ++s) total += weight(s) * term(s)[i];
  return total;
}

}  // namespace blockdraft
