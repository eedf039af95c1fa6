// A product, Gemm<T, W>, is a group (group.h) that multiplies a tile of weights by a tile of tokens:
// Y^T[out, token] = W[out, k] X^T[k, token], the orientation of S^T = K Q^T. Weights are the
// streamed operand, each read once by its group; tokens are columns, staged for all waves.
//
//   kRows, kGroupColumns   the most output channels and columns that a group should have
//   kEpilogueRows          output channels whose sums an epilogue is given at once
//   multiply(rows, columns, depth, weight, column, epilogue)
//     weight(i) -> const T*       output channel i < rows: `depth` elements, 16-byte aligned; or
//                                 ScaledRow<W> of weights with scales (base/formats.h)
//     column(c) -> const X*       column c < columns, likewise (the body may gather here).
//                                 X is T; in a product for layers, T or float in the group's
//                                 memory, where the epilogue may overwrite them
//     epilogue(i, c, y)           y are the sums of channels i .. i + kEpilogueRows - 1 of column c,
//                                 0 for channels beyond `rows`; i is a multiple of kEpilogueRows.
//                                 One thread calls it once for each (i, c)
//
// Between two products of a group there is a barrier. `depth` elements are a multiple of 16 bytes.
// Sums are fp32, over k in an order that depends on depth alone, so that neither `rows` nor the
// other columns change a column's bits.
#pragma once

#include "base/formats.h"
#include "tile/group.h"

namespace blockdraft {

template <class T>
struct GemmExample {
  static const T* operand(int) { return nullptr; }
};

template <class W>
struct ScaledExample {
  static ScaledRow<W> operand(int) { return {}; }
};

struct EpilogueExample {
  template <class Sums>
  void operator()(int, int, Sums) const {}
};

// `X`: of the columns.
template <class Gemm, class T, class X = T>
concept GemmTarget = GroupTarget<Gemm> && requires(Gemm gemm, int n) {
  Gemm::kRows + Gemm::kGroupColumns + Gemm::kEpilogueRows;
  gemm.multiply(n, n, n, GemmExample<T>::operand, GemmExample<X>::operand, EpilogueExample());
};

template <class Gemm, class T, class W>
concept ScaledGemmTarget = GroupTarget<Gemm> && requires(Gemm gemm, int n) {
  gemm.multiply(n, n, n, ScaledExample<W>::operand, GemmExample<T>::operand, EpilogueExample());
};

}  // namespace blockdraft
