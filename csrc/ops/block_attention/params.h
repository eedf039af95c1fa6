// Arguments of block_attention's kernels, in the order of blockdraft.ops.block_attention.Args.
#pragma once

#include "base/device.h"
#include "base/formats.h"
#include "base/numbers.h"
#include "ops/rows.h"

namespace blockdraft {

// What the cache is made of: T itself, or fp8, whose strides are bytes.
enum class CacheFormat { kPlain, kFn, kFnuz };

template <class T>
struct AttentionParams {
  View<const T, 2> q, k, v;               // [rows][heads][head_dim]
  View<const T, 3> k_cache, v_cache;      // [pages][page][kv_heads][head_dim]; or of fp8
  View<const float, 2> k_scale, v_scale;  // [pages][kv_heads], of fp8
  View<const int32_t, 1> block_table;     // [batch][pages of a request]
  Rows rows;
  float scale;       // of the logits, times log2(e): scores are exponents of 2
  int window;        // 0: none
  int chunk_keys;    // the least keys of a chunk of a prefix
  int max_chunks;    // of a prefix, up to 64; longer prefixes get longer chunks
  int split_chunks;  // at most so many chunks, a power of two, are a split
  View<T, 2> out;
  View<float, 1> lse;  // [rows][query_heads]
  float* workspace;    // [splits][rows][query_heads][head_dim + 2]

  int64_t total_rows;
  int query_heads, kv_heads, head_dim, page_shift;
  CacheFormat cache_format;

  BLOCKDRAFT_POINTERS(q, k, v, k_cache, v_cache, k_scale, v_scale, block_table, rows, out, lse,
                      workspace)

  int group() const { return query_heads / kv_heads; }
  // The result of a split: the unnormalised output, then its maximum and sum.
  float* partial(int split, int64_t row, int head) const {
    return workspace + ((split * total_rows + row) * query_heads + head) * (head_dim + 2);
  }
};

template <class T>
void launch(const AttentionParams<T>&, const Parallel&);
template <class T>
void launch(const AttentionParams<T>&, Stream);

}  // namespace blockdraft
