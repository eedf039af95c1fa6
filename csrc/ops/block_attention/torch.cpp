// block_attention's arguments, which blockdraft.ops has checked, as parameters.
#include "ops/torch.h"

#include "ops/block_attention/params.h"

namespace blockdraft {

static CacheFormat cache_format(const Optional& cache) {
  CacheFormat found = CacheFormat::kPlain;
  for_cache_type(cache, float{}, [&]<class C>(C) {
    if constexpr (std::is_same_v<C, e4m3fn>) found = CacheFormat::kFn;
    if constexpr (std::is_same_v<C, e4m3fnuz>) found = CacheFormat::kFnuz;
  });
  return found;
}

static void block_attention_torch(Tensor q, Tensor k, Tensor v, Optional k_cache, Optional v_cache,
                                  Optional k_scale, Optional v_scale, Optional block_table,
                                  Tensor rows_cu_rows, Tensor rows_prefix_lens,
                                  Tensor rows_draft_len, Tensor rows_branch, int64_t rows_mask_rows,
                                  bool rows_bidirectional, int64_t rows_max_rows,
                                  int64_t rows_max_prefix, double scale, int64_t window,
                                  int64_t chunk_keys, int64_t max_chunks, int64_t split_chunks,
                                  Tensor out, Optional lse, Optional workspace) {
  if (q.numel() == 0) return;
  for_float_type(q, [&]<class T>(T) {
    const AttentionParams<T> p{
        .q = view<const T, 2>(q),
        .k = view<const T, 2>(k),
        .v = view<const T, 2>(v),
        .k_cache = view<const T, 3>(k_cache),
        .v_cache = view<const T, 3>(v_cache),
        .k_scale = view<const float, 2>(k_scale),
        .v_scale = view<const float, 2>(v_scale),
        .block_table = view<const int32_t, 1>(block_table),
        .rows = rows_of(rows_cu_rows, rows_prefix_lens, rows_draft_len, rows_branch, rows_mask_rows,
                        rows_bidirectional, rows_max_rows, rows_max_prefix),
        .scale = float(scale * kLog2e),
        .window = int(window),
        .chunk_keys = int(chunk_keys),
        .max_chunks = int(max_chunks),
        .split_chunks = int(split_chunks),
        .out = view<T, 2>(out),
        .lse = view<float, 1>(lse),
        .workspace = data<float>(workspace),
        .total_rows = q.size(0),
        .query_heads = int(q.size(1)),
        .kv_heads = int(k.size(1)),
        .head_dim = int(q.size(2)),
        .page_shift = k_cache ? __builtin_ctzll(uint64_t(k_cache->size(1))) : 0,
        .cache_format = cache_format(k_cache)};
    launch_on_device_of(q, p);
  });
}

void register_block_attention(torch::stable::detail::StableLibrary& library) {
  BLOCKDRAFT_REGISTER(library, block_attention)
}

}  // namespace blockdraft
