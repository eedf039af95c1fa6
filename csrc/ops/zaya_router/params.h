// Arguments of zaya_router's kernels, in the order of blockdraft.ops.zaya_router.Args.
#pragma once

#include "base/device.h"
#include "base/numbers.h"
#include "base/view.h"

namespace blockdraft {

constexpr int kRouterColumns = 16;    // tokens that a group of a GPU routes, at most,
constexpr int kRouterFloats = 12288;  // by so many floats of memory

template <class T>
struct ZayaRouterParams {
  View<const T, 1> hidden;       // [rows][hidden_size]
  View<const T, 1> prev_state;   // [rows][channels], or none
  View<const T, 1> down_weight;  // [channels][hidden_size]
  const T* down_bias;
  const T* eda_scale;
  const T* norm_weight;
  View<const T, 1> fc1_weight;  // [channels][channels]
  const T* fc1_bias;
  View<const T, 1> fc2_weight;  // [channels][channels]
  const T* fc2_bias;
  View<const T, 1> out_weight;  // [classes][channels]; the last class is skip
  const float* balancing_bias;
  float eps;
  const bool* live;
  View<float, 1> weights;    // [rows][choices]
  View<int32_t, 1> experts;  // [rows][choices]
  float* skip_prob;
  View<T, 1> state;  // [rows][channels]

  int rows, hidden_size, channels, classes, choices;

  // Floats from one token's activations to the next one's. A GPU then reads those of neighbouring
  // tokens from different banks.
  int stride() const { return ceil_div(most(channels, classes), 4) * 4 + 4; }

  // Tokens whose activations, before and after a layer, so many floats hold.
  int columns_in(int floats) const { return least(kRouterColumns, floats / (2 * stride())); }

  BLOCKDRAFT_POINTERS(hidden, prev_state, down_weight, down_bias, eda_scale, norm_weight,
                      fc1_weight, fc1_bias, fc2_weight, fc2_bias, out_weight, balancing_bias, live,
                      weights, experts, skip_prob, state)
};

template <class T>
void launch(const ZayaRouterParams<T>&, const Parallel&);
template <class T>
void launch(const ZayaRouterParams<T>&, Stream);

}  // namespace blockdraft
