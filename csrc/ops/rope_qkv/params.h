// Arguments of rope_qkv's kernel, in the order of blockdraft.ops.rope_qkv.Args.
#pragma once

#include "base/device.h"
#include "base/formats.h"
#include "base/numbers.h"
#include "ops/rows.h"

namespace blockdraft {

// `C`: of the cache, T itself or fp8 with scales.
template <class T, class C = T>
struct RopeParams {
  View<const T, 2> q, k, v;      // [rows][heads][head_dim]
  View<const float, 1> cos_sin;  // [positions][rotary]
  Rows rows;
  const float* query_scale;  // [positions], or none: 1
  View<const int32_t, 1> block_table;
  View<C, 3> k_cache, v_cache;            // [pages][page][kv_heads][head_dim], or none
  View<const float, 2> k_scale, v_scale;  // [pages][kv_heads], of fp8
  View<T, 2> q_out, k_out, v_out;         // as q, k, v

  int total_rows, query_heads, kv_heads, head_dim, rotary, page_shift;

  BLOCKDRAFT_POINTERS(q, k, v, cos_sin, rows, query_scale, block_table, k_cache, v_cache, k_scale,
                      v_scale, q_out, k_out, v_out)
};

template <class T, class C>
void launch(const RopeParams<T, C>&, const Parallel&);
template <class T, class C>
void launch(const RopeParams<T, C>&, Stream);

}  // namespace blockdraft
