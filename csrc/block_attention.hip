// GPU launcher of block_attention for gfx942 and gfx950. The device code needs no HIP headers, so
// that it also compiles where there is only clang.
#include "hip_launch.h"

#pragma clang force_cuda_host_device begin
#include "block_attention.h"
#include "tile/cdna.h"
#pragma clang force_cuda_host_device end

namespace blockdraft {

template <class T, int kDim>
BLOCKDRAFT_KERNEL(cdna::kThreads, 2)
block_attention_kernel(AttentionParams<T> p, AttentionGrid<T> grid) {
  using Tile = cdna::Tile<T, AttentionColumn, kDim>;
  __attribute__((shared)) static typename Tile::Memory memory;
  const int64_t id = cdna::contiguous_per_xcd(grid.items);
  p.each_pointer([](auto*& pointer) { pointer = cdna::global(pointer); });
  AttentionItem item;
  if (id >= grid.items || !grid.item(p, id, item)) return;
  Tile tile(memory);
  Attention<Tile, T>(tile, p, item).run();
}

template <class T>
BLOCKDRAFT_KERNEL(cdna::kWave, 1)
block_attention_merge_kernel(AttentionParams<T> p) {
  p.each_pointer([](auto*& pointer) { pointer = cdna::global(pointer); });
  cdna::Group<cdna::kWave> group;
  const int row = __builtin_amdgcn_workgroup_id_x() / p.query_heads;
  merge_attention(group, p, row / p.max_rows, row % p.max_rows,
                  __builtin_amdgcn_workgroup_id_x() % p.query_heads);
}

#define BLOCKDRAFT_INSTANTIATE(T)                                       \
  template BLOCKDRAFT_KERNEL(cdna::kThreads, 2)                         \
  block_attention_kernel<T, 64>(AttentionParams<T>, AttentionGrid<T>);  \
  template BLOCKDRAFT_KERNEL(cdna::kThreads, 2)                         \
  block_attention_kernel<T, 128>(AttentionParams<T>, AttentionGrid<T>); \
  template BLOCKDRAFT_KERNEL(cdna::kWave, 1)                            \
  block_attention_merge_kernel<T>(AttentionParams<T>);
BLOCKDRAFT_INSTANTIATE(float)
BLOCKDRAFT_INSTANTIATE(bf16)
BLOCKDRAFT_INSTANTIATE(fp16)
#undef BLOCKDRAFT_INSTANTIATE

}  // namespace blockdraft

#ifdef BLOCKDRAFT_HIP_RUNTIME
namespace blockdraft {

template <class T>
void block_attention_hip(const AttentionParams<T>& p, void* stream) {
  const AttentionGrid<T> grid(p, cdna::kThreads / cdna::kWave * cdna::kColumns);
  auto* kernel = p.head_dim == 64 ? block_attention_kernel<T, 64> : block_attention_kernel<T, 128>;
  launch(kernel, ceil_div<int64_t>(grid.items, 8) * 8, cdna::kThreads, stream, p, grid);
  if (grid.splits > 1)
    launch(block_attention_merge_kernel<T>, int64_t(p.batch) * p.max_rows * p.query_heads,
           cdna::kWave, stream, p);
}

template void block_attention_hip(const AttentionParams<float>&, void*);
template void block_attention_hip(const AttentionParams<bf16>&, void*);
template void block_attention_hip(const AttentionParams<fp16>&, void*);

}  // namespace blockdraft
#endif
