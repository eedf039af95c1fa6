// GPU launcher of block_attention for gfx942 and gfx950. The device code needs no HIP headers, so
// it also compiles with a plain clang.
#include "tile/cdna/launch.h"

#pragma clang force_cuda_host_device begin
#include "ops/block_attention/body.h"
#include "tile/cdna/attention.h"
#pragma clang force_cuda_host_device end

namespace blockdraft {

constexpr int kGroupColumns = cdna::kWaves * cdna::kColumns;

template <class T, AttentionStep kStep, int kHeadDim>
BLOCKDRAFT_KERNEL(cdna::kThreads, 2)
block_attention_kernel(AttentionParams<T> p) {
  static_assert(kStep == AttentionStep::kAttend);
  using Tile = cdna::Tile<T, AttentionColumn, kHeadDim>;
  __attribute__((shared)) static typename Tile::Memory memory;
  cdna::use_global_pointers(p);
  const AttentionGrid<T> grid(p, kGroupColumns);
  const int64_t id = cdna::contiguous_per_xcd(grid.items);
  AttentionItem item;
  if (id >= grid.items || !grid.item(p, id, item)) return;
  Tile tile(memory);
  Attention<Tile, T>(tile, p, item).run();
}

template <class T, AttentionStep kStep>
BLOCKDRAFT_KERNEL(cdna::kWave, 1)
block_attention_kernel(AttentionParams<T> p) {
  static_assert(kStep == AttentionStep::kMerge);
  cdna::use_global_pointers(p);
  cdna::Group<cdna::kWave> group;
  merge_attention(group, p, cdna::group_index());
}

#define BLOCKDRAFT_INSTANTIATE(T)                                             \
  template BLOCKDRAFT_KERNEL(cdna::kThreads, 2)                               \
  block_attention_kernel<T, AttentionStep::kAttend, 64>(AttentionParams<T>);  \
  template BLOCKDRAFT_KERNEL(cdna::kThreads, 2)                               \
  block_attention_kernel<T, AttentionStep::kAttend, 128>(AttentionParams<T>); \
  template BLOCKDRAFT_KERNEL(cdna::kWave, 1)                                  \
  block_attention_kernel<T, AttentionStep::kMerge>(AttentionParams<T>);
BLOCKDRAFT_INSTANTIATE(float)
BLOCKDRAFT_INSTANTIATE(bf16)
BLOCKDRAFT_INSTANTIATE(fp16)
#undef BLOCKDRAFT_INSTANTIATE

}  // namespace blockdraft

#ifdef BLOCKDRAFT_HIP_RUNTIME
#pragma clang force_cuda_host_device begin  // as params.h declares it
namespace blockdraft {

template <class T>
void launch(const AttentionParams<T>& p, Stream stream) {
  schedule(p, kGroupColumns, [&]<AttentionStep kStep>(int64_t groups) {
    if constexpr (kStep == AttentionStep::kMerge) {
      start(block_attention_kernel<T, kStep>, groups, cdna::kWave, stream, p);
    } else {
      const int64_t padded = ceil_div<int64_t>(groups, 8) * 8;  // equally many for each XCD
      if (p.head_dim == 64)
        start(block_attention_kernel<T, kStep, 64>, padded, cdna::kThreads, stream, p);
      else
        start(block_attention_kernel<T, kStep, 128>, padded, cdna::kThreads, stream, p);
    }
  });
}

template void launch(const AttentionParams<float>&, Stream);
template void launch(const AttentionParams<bf16>&, Stream);
template void launch(const AttentionParams<fp16>&, Stream);

}  // namespace blockdraft
#pragma clang force_cuda_host_device end
#endif
