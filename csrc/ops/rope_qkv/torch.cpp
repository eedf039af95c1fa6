// rope_qkv's arguments, which blockdraft.ops has checked, as parameters.
#include "ops/torch.h"

#include "ops/rope_qkv/params.h"

namespace blockdraft {

static void rope_qkv_torch(Tensor q, Tensor k, Tensor v, Tensor cos_sin, Tensor rows_cu_rows,
                           Tensor rows_prefix_lens, Tensor rows_draft_len, Tensor rows_branch,
                           int64_t rows_mask_rows, bool rows_bidirectional, int64_t rows_max_rows,
                           int64_t rows_max_prefix, Optional query_scale, Optional block_table,
                           Optional k_cache, Optional v_cache, Optional k_scale, Optional v_scale,
                           Tensor q_out, Tensor k_out, Tensor v_out) {
  if (q.numel() == 0) return;
  auto start = [&]<class T, class C>(T, C) {
    const RopeParams<T, C> p{
        .q = view<const T, 2>(q),
        .k = view<const T, 2>(k),
        .v = view<const T, 2>(v),
        .cos_sin = view<const float, 1>(cos_sin),
        .rows = rows_of(rows_cu_rows, rows_prefix_lens, rows_draft_len, rows_branch, rows_mask_rows,
                        rows_bidirectional, rows_max_rows, rows_max_prefix),
        .query_scale = data<float>(query_scale),
        .block_table = view<const int32_t, 1>(block_table),
        .k_cache = view<C, 3>(k_cache),
        .v_cache = view<C, 3>(v_cache),
        .k_scale = view<const float, 2>(k_scale),
        .v_scale = view<const float, 2>(v_scale),
        .q_out = view<T, 2>(q_out),
        .k_out = view<T, 2>(k_out),
        .v_out = view<T, 2>(v_out),
        .total_rows = int(q.size(0)),
        .query_heads = int(q.size(1)),
        .kv_heads = int(k.size(1)),
        .head_dim = int(q.size(2)),
        .rotary = int(cos_sin.size(1)),
        .page_shift = k_cache ? __builtin_ctzll(uint64_t(k_cache->size(1))) : 0};
    launch_on_device_of(q, p);
  };
  for_float_type(q, [&]<class T>(T type) {
    for_cache_type(k_cache, type, [&](auto cache) { start(type, cache); });
  });
}

void register_rope_qkv(torch::stable::detail::StableLibrary& library) {
  BLOCKDRAFT_REGISTER(library, rope_qkv)
}

}  // namespace blockdraft
