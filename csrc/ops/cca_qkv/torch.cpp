// cca_qkv's arguments, which blockdraft.ops has checked, as parameters.
#include "ops/torch.h"

#include "ops/cca_qkv/params.h"

namespace blockdraft {

static void cca_qkv_torch(Tensor qk, Tensor v_now, Tensor v_late, Tensor conv0_weight,
                          Tensor conv0_bias, Tensor conv1_weight, Tensor conv1_bias, Tensor temp,
                          Tensor cos_sin, Tensor rows_cu_rows, Tensor rows_prefix_lens,
                          Tensor rows_draft_len, Tensor rows_branch, int64_t rows_mask_rows,
                          bool rows_bidirectional, int64_t rows_max_rows, int64_t rows_max_prefix,
                          Optional conv_state, Optional late_state, Optional slots,
                          Optional late_start, double norm_eps, Optional block_table,
                          Optional k_cache, Optional v_cache, Optional k_scale, Optional v_scale,
                          Tensor q, Tensor k, Tensor v) {
  if (q.numel() == 0) return;
  auto start = [&]<class T, class C>(T, C) {
    const CcaParams<T, C> p{
        .qk = view<const T, 1>(qk),
        .v_now = view<const T, 1>(v_now),
        .v_late = view<const T, 1>(v_late),
        .conv0_weight = view<const T, 1>(conv0_weight),
        .conv0_bias = data<T>(conv0_bias),
        .conv1_weight = view<const T, 1>(conv1_weight),
        .conv1_bias = data<T>(conv1_bias),
        .temp = data<T>(temp),
        .cos_sin = view<const float, 1>(cos_sin),
        .rows = rows_of(rows_cu_rows, rows_prefix_lens, rows_draft_len, rows_branch, rows_mask_rows,
                        rows_bidirectional, rows_max_rows, rows_max_prefix),
        .conv_state = view<const T, 2>(conv_state),
        .late_state = view<const T, 1>(late_state),
        .slots = data<int32_t>(slots),
        .late_start = data<T>(late_start),
        .norm_eps = float(norm_eps),
        .block_table = view<const int32_t, 1>(block_table),
        .k_cache = view<C, 3>(k_cache),
        .v_cache = view<C, 3>(v_cache),
        .k_scale = view<const float, 2>(k_scale),
        .v_scale = view<const float, 2>(v_scale),
        .q = view<T, 2>(q),
        .k = view<T, 2>(k),
        .v = view<T, 2>(v),
        .total_rows = int(q.size(0)),
        .query_heads = int(q.size(1)),
        .kv_heads = int(k.size(1)),
        .head_dim = int(q.size(2)),
        .taps0 = int(conv0_weight.size(2)),
        .taps1 = int(conv1_weight.size(2)),
        .rotary = int(cos_sin.size(1)),
        .page_shift = k_cache ? __builtin_ctzll(uint64_t(k_cache->size(1))) : 0};
    launch_on_device_of(q, p);
  };
  for_float_type(qk, [&]<class T>(T type) {
    for_cache_type(k_cache, type, [&](auto cache) { start(type, cache); });
  });
}

void register_cca_qkv(torch::stable::detail::StableLibrary& library) {
  BLOCKDRAFT_REGISTER(library, cca_qkv)
}

}  // namespace blockdraft
