// GPU launcher of block_attention for gfx942 and gfx950. The device code needs no HIP headers, so
// it also compiles with a plain clang.
#include "tile/cdna/launch.h"

#pragma clang force_cuda_host_device begin
#include "ops/block_attention/body.h"
#include "tile/cdna/attention.h"
#pragma clang force_cuda_host_device end

namespace blockdraft {

// An item of few columns takes several chunks; with more, results are larger, and so are
// chunks.
template <class T>
constexpr AttentionColumns attention_columns() {
  return {cdna::kAttentionWaves * cdna::kWaveColumns<T>, cdna::kWaveColumns<T>, 2};
}

constexpr int kMergeThreads = AttentionMerge::kWaves * cdna::kWave;

// C: of the cache, T or the device's fp8.
template <class T, AttentionStep kStep, int kHeadDim, class C>
BLOCKDRAFT_KERNEL(cdna::kAttentionThreads, 1)
block_attention_kernel(AttentionWork<T> work) {
  static_assert(kStep == AttentionStep::kAttend);
  using Few = cdna::Tile<T, C, AttentionColumn, kHeadDim, false>;
  using Many = cdna::Tile<T, C, AttentionColumn, kHeadDim, true>;
  union Memory {
    typename Few::Memory few;
    typename Many::Memory many;
  };
  __attribute__((shared)) static Memory memory;
  cdna::use_global_pointers(work);
  const auto& [p, grid] = work;
  const int64_t id = cdna::contiguous_per_xcd(grid.items);
  AttentionItem item;
  if (id >= grid.items || !grid.item(p, id, item)) return;
  if (grid.columns.are_few(p, item.of.rows)) {
    Few tile(memory.few);
    Attention<Few, T>(tile, Few::reload(p), item).run();
  } else {
    Many tile(memory.many);
    Attention<Many, T>(tile, Many::reload(p), item).run();
  }
}

template <class T, AttentionStep kStep>
BLOCKDRAFT_KERNEL(kMergeThreads, 2)
block_attention_kernel(AttentionWork<T> work) {
  static_assert(kStep == AttentionStep::kMerge);
  __attribute__((shared)) static float memory[AttentionMerge::kWaves * (128 + 2)];
  cdna::use_global_pointers(work);
  cdna::Group<kMergeThreads> group;
  __builtin_assume(work.params.head_dim <= 2 * cdna::kWave);  // no loop over a row
  merge_attention(group, work.params, work.grid, cdna::group_index(), memory);
}

#define BLOCKDRAFT_INSTANTIATE_ATTEND(T, C)                                   \
  template BLOCKDRAFT_KERNEL(cdna::kAttentionThreads, 1)                      \
  block_attention_kernel<T, AttentionStep::kAttend, 64, C>(AttentionWork<T>); \
  template BLOCKDRAFT_KERNEL(cdna::kAttentionThreads, 1)                      \
  block_attention_kernel<T, AttentionStep::kAttend, 128, C>(AttentionWork<T>);
#define BLOCKDRAFT_INSTANTIATE(T)              \
  BLOCKDRAFT_INSTANTIATE_ATTEND(T, T)          \
  template BLOCKDRAFT_KERNEL(kMergeThreads, 2) \
  block_attention_kernel<T, AttentionStep::kMerge>(AttentionWork<T>);
BLOCKDRAFT_INSTANTIATE(float)
BLOCKDRAFT_INSTANTIATE(bf16)
BLOCKDRAFT_INSTANTIATE(fp16)
// Each device has its own fp8; a launch of the other's finds no kernel.
#ifndef __gfx942__
BLOCKDRAFT_INSTANTIATE_ATTEND(bf16, e4m3fn)
#endif
#ifndef __gfx950__
BLOCKDRAFT_INSTANTIATE_ATTEND(bf16, e4m3fnuz)
#endif
#undef BLOCKDRAFT_INSTANTIATE
#undef BLOCKDRAFT_INSTANTIATE_ATTEND

}  // namespace blockdraft

#ifdef BLOCKDRAFT_HIP_RUNTIME
#pragma clang force_cuda_host_device begin  // as params.h declares it
namespace blockdraft {

template <class C, class T>
void launch_with(const AttentionParams<T>& p, Stream stream) {
  const AttentionWork<T> work{p, AttentionGrid(p, attention_columns<T>())};
  schedule(p, attention_columns<T>(), [&]<AttentionStep kStep>(int64_t groups) {
    if constexpr (kStep == AttentionStep::kMerge) {
      start(block_attention_kernel<T, kStep>, groups, kMergeThreads, stream, work);
    } else {
      const int64_t padded = ceil_div<int64_t>(groups, 8) * 8;  // equally many for each XCD
      constexpr int kThreads = cdna::kAttentionThreads;
      if (p.head_dim == 64)
        start(block_attention_kernel<T, kStep, 64, C>, padded, kThreads, stream, work);
      else
        start(block_attention_kernel<T, kStep, 128, C>, padded, kThreads, stream, work);
    }
  });
}

template <class T>
void launch(const AttentionParams<T>& p, Stream stream) {
  if (p.cache_format == CacheFormat::kPlain) return launch_with<T>(p, stream);
  if constexpr (!std::is_same_v<T, bf16>)
    throw std::invalid_argument("block_attention: a cache of fp8 has bf16 queries on a GPU");
  else if (p.cache_format == CacheFormat::kFn)
    launch_with<e4m3fn>(p, stream);
  else
    launch_with<e4m3fnuz>(p, stream);
}

template void launch(const AttentionParams<float>&, Stream);
template void launch(const AttentionParams<bf16>&, Stream);
template void launch(const AttentionParams<fp16>&, Stream);

}  // namespace blockdraft
#pragma clang force_cuda_host_device end
#endif
