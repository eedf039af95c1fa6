// block_attention on torch tensors, which blockdraft.ops has checked: arguments -> parameters ->
// the device's launcher.
#include "block_attention.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "torch_launch.h"

namespace blockdraft {

using torch::stable::Tensor;

template <class T>
void block_attention_host(const AttentionParams<T>&, const Parallel&);
template <class T>
void block_attention_hip(const AttentionParams<T>&, void* stream);

static void block_attention_torch(Tensor q, Tensor k, Tensor v, std::optional<Tensor> k_cache,
                                  std::optional<Tensor> v_cache, std::optional<Tensor> block_table,
                                  Tensor cu_rows, Tensor prefix_lens, Tensor draft_len,
                                  Tensor branch, int64_t mask_rows, bool bidirectional,
                                  int64_t max_rows, int64_t max_prefix, double scale,
                                  int64_t window, int64_t split, Tensor out,
                                  std::optional<Tensor> lse, std::optional<Tensor> workspace) {
  if (q.numel() == 0) return;
  for_float_type(q, [&](auto type) {
    using T = decltype(type);
    AttentionParams<T> p{};
    p.q = data<T>(q), p.k = data<T>(k), p.v = data<T>(v), p.out = data<T>(out);
    p.q_row = q.stride(0), p.q_head = q.stride(1);
    p.k_row = k.stride(0), p.k_head = k.stride(1);
    p.v_row = v.stride(0), p.v_head = v.stride(1);
    p.out_row = out.stride(0), p.out_head = out.stride(1);
    if (k_cache) {
      p.k_cache = data<T>(*k_cache), p.v_cache = data<T>(*v_cache);
      p.k_page = k_cache->stride(0), p.k_slot = k_cache->stride(1),
      p.k_kv_head = k_cache->stride(2);
      p.v_page = v_cache->stride(0), p.v_slot = v_cache->stride(1),
      p.v_kv_head = v_cache->stride(2);
      p.block_table = data<int32_t>(*block_table), p.table_row = block_table->stride(0);
      p.page_shift = __builtin_ctzll(uint64_t(k_cache->size(1)));
    }
    p.cu_rows = data<int32_t>(cu_rows), p.prefix_lens = data<int32_t>(prefix_lens),
    p.draft_len = data<int32_t>(draft_len);
    p.branch = data<int32_t>(branch), p.branch_row = branch.stride(0);
    if (lse) p.lse = data<float>(*lse), p.lse_row = lse->stride(0);
    if (workspace) p.workspace = data<float>(*workspace);
    p.total_rows = q.size(0), p.batch = int(prefix_lens.size(0));
    p.query_heads = int(q.size(1)), p.kv_heads = int(k.size(1)), p.head_dim = int(q.size(2));
    p.mask_rows = int(mask_rows), p.proposals = int(branch.size(1)),
    p.bidirectional = bidirectional;
    p.window = int(window), p.split = int(split), p.max_rows = int(max_rows),
    p.max_prefix = int(max_prefix);
    p.scale = float(scale * 1.4426950408889634);
    BLOCKDRAFT_LAUNCH(q, block_attention, p);
  });
}

void register_block_attention(torch::stable::detail::StableLibrary& library) {
  library.impl("block_attention_cpp", TORCH_BOX(&block_attention_torch));
}

}  // namespace blockdraft
