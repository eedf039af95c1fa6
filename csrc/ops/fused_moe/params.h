// Arguments of fused_moe's kernels, in the order of blockdraft.ops.fused_moe.Args.
#pragma once

#include "base/device.h"
#include "base/formats.h"
#include "base/numbers.h"
#include "ops/moe_dispatch/params.h"

namespace blockdraft {

// So many pairs (row, choice), the bits of a list, are routed without being sorted.
constexpr int kFewPairs = 64;

// `W`: how weights are stored, T itself or a format with scales.
template <class T, class W = T>
struct FusedMoeParams {
  View<const T, 1> x;              // [rows][hidden]
  View<const int32_t, 1> experts;  // [rows][choices]
  View<const float, 1> weights;    // [rows][choices]
  View<const W, 2> gate_up;        // [experts][2 inner][hidden], gate rows then up rows
  View<const W, 2> down;           // [experts][hidden][inner]
  ScaleView<W> gate_up_scale;
  ScaleView<W> down_scale;
  const float* skip_prob;
  int skip;  // 0: a row without experts is 0; 1: x * skip_prob
  View<T, 1> out;
  int32_t* order;  // as moe_dispatch's
  int32_t* offsets;
  T* activations;   // [pairs][inner], silu(gate) * up
  float* partials;  // [pairs][hidden], of more than one choice

  int rows, choices, num_experts, hidden, inner;

  int pairs() const { return rows * choices; }
  bool few() const { return pairs() <= kFewPairs; }
  int row(int pair) const { return choices == 1 ? pair : pair / choices; }
  int expert(int pair) const { return experts.at(row(pair))[pair - row(pair) * choices]; }
  float weight(int pair) const { return weights.at(row(pair))[pair - row(pair) * choices]; }
  auto gate_up_row(int expert, int i) const { return row_of(gate_up, gate_up_scale, expert, i); }
  auto down_row(int expert, int i) const { return row_of(down, down_scale, expert, i); }
  DispatchParams dispatch() const { return {experts, num_experts, order, offsets, rows, choices}; }

  BLOCKDRAFT_POINTERS(x, experts, weights, gate_up, down, gate_up_scale, down_scale, skip_prob, out,
                      order, offsets, activations, partials)
};

template <class T, class W>
void launch(const FusedMoeParams<T, W>&, const Parallel&);
template <class T, class W>
void launch(const FusedMoeParams<T, W>&, Stream);

}  // namespace blockdraft
