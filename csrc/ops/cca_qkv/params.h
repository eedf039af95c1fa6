// Arguments of cca_qkv's kernels, in the order of blockdraft.ops.cca_qkv.Args.
#pragma once

#include "base/device.h"
#include "base/formats.h"
#include "base/numbers.h"
#include "ops/rows.h"

namespace blockdraft {

constexpr int kCcaBytes = 20480;  // of a group's memory on a GPU

// `C`: of the cache, T itself or fp8 with scales.
template <class T, class C = T>
struct CcaParams {
  View<const T, 1> qk;            // [rows][heads * head_dim], query heads, then KV heads
  View<const T, 1> v_now;         // [rows][half]
  View<const T, 1> v_late;        // [rows][half]
  View<const T, 1> conv0_weight;  // [channels][taps0]
  const T* conv0_bias;
  View<const T, 1> conv1_weight;  // [channels][head_dim * taps1], the taps of a channel together
  const T* conv1_bias;
  const T* temp;                 // [kv_heads]
  View<const float, 1> cos_sin;  // [positions][rotary]
  Rows rows;
  View<const T, 2> conv_state;  // [slots][taps0 + taps1 - 2][channels], oldest first
  View<const T, 1> late_state;  // [slots][half]
  const int32_t* slots;         // [batch]
  const T* late_start;          // [half]
  float norm_eps;               // < 0: the norm is at least -norm_eps; else added to its square
  View<const int32_t, 1> block_table;
  View<C, 3> k_cache, v_cache;            // [pages][page][kv_heads][head_dim]
  View<const float, 2> k_scale, v_scale;  // [pages][kv_heads], of fp8
  View<T, 2> q, k, v;                     // [rows][heads][head_dim]

  int total_rows, query_heads, kv_heads, head_dim, taps0, taps1, rotary, page_shift;

  int heads() const { return query_heads + kv_heads; }
  int group() const { return query_heads / kv_heads; }
  int half() const { return kv_heads * head_dim / 2; }
  int history() const { return taps0 + taps1 - 2; }

  BLOCKDRAFT_POINTERS(qk, v_now, v_late, conv0_weight, conv0_bias, conv1_weight, conv1_bias, temp,
                      cos_sin, rows, conv_state, late_state, slots, late_start, block_table,
                      k_cache, v_cache, k_scale, v_scale, q, k, v)
};

template <class T, class C>
void launch(const CcaParams<T, C>&, const Parallel&);
template <class T, class C>
void launch(const CcaParams<T, C>&, Stream);

}  // namespace blockdraft
