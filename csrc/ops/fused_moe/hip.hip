// GPU launcher of fused_moe for gfx942 and gfx950. Few pairs are routed by the groups themselves,
// and the depth is split among the waves of a group.
#include "tile/cdna/launch.h"

#pragma clang force_cuda_host_device begin
#include "ops/fused_moe/body.h"
#include "tile/cdna/gemm.h"
#pragma clang force_cuda_host_device end

namespace blockdraft {

constexpr int kTallRows = 512;  // from so many on, a wave has two tiles of channels

template <class Gemm, class T, MoeStep kStep>
BLOCKDRAFT_KERNEL(cdna::kThreads, 2)
fused_moe_kernel(FusedMoeParams<T> p) {
  struct Memory {
    typename Gemm::Memory gemm;
    int32_t found[kFewPairs];
  };
  __attribute__((shared)) static Memory memory;
  cdna::use_global_pointers(p);
  const int64_t groups = moe_groups(p, kStep, Gemm::kRows, Gemm::kGroupColumns);
  const int64_t id = cdna::contiguous_per_xcd(groups);
  if (id >= groups) return;
  Gemm gemm(memory.gemm);
  fused_moe<kStep>(gemm, p, id, memory.found);
}

#define BLOCKDRAFT_INSTANTIATE_STEP(T, step, ...) \
  template BLOCKDRAFT_KERNEL(cdna::kThreads, 2)   \
  fused_moe_kernel<__VA_ARGS__, T, MoeStep::step>(FusedMoeParams<T>);
#define BLOCKDRAFT_INSTANTIATE_GEMM(T, ...)            \
  BLOCKDRAFT_INSTANTIATE_STEP(T, kGateUp, __VA_ARGS__) \
  BLOCKDRAFT_INSTANTIATE_STEP(T, kDown, __VA_ARGS__)   \
  BLOCKDRAFT_INSTANTIATE_STEP(T, kCombine, __VA_ARGS__)
#define BLOCKDRAFT_INSTANTIATE(T)                    \
  BLOCKDRAFT_INSTANTIATE_GEMM(T, cdna::SplitGemm<T>) \
  BLOCKDRAFT_INSTANTIATE_GEMM(T, cdna::Gemm<T, 1>)   \
  BLOCKDRAFT_INSTANTIATE_GEMM(T, cdna::Gemm<T, 2>)
BLOCKDRAFT_INSTANTIATE(float)
BLOCKDRAFT_INSTANTIATE(bf16)
BLOCKDRAFT_INSTANTIATE(fp16)
#undef BLOCKDRAFT_INSTANTIATE
#undef BLOCKDRAFT_INSTANTIATE_GEMM
#undef BLOCKDRAFT_INSTANTIATE_STEP

}  // namespace blockdraft

#ifdef BLOCKDRAFT_HIP_RUNTIME
#pragma clang force_cuda_host_device begin  // as params.h declares it
namespace blockdraft {

template <class Gemm, class T>
void launch_products(const FusedMoeParams<T>& p, Stream stream) {
  schedule(p, Gemm::kRows, Gemm::kGroupColumns, [&]<MoeStep kStep>(int64_t groups) {
    if constexpr (kStep == MoeStep::kDispatch) {
      launch(p.dispatch(), stream);
    } else {
      const int64_t padded = ceil_div<int64_t>(groups, 8) * 8;  // as many for each XCD
      start(fused_moe_kernel<Gemm, T, kStep>, padded, cdna::kThreads, stream, p);
    }
  });
}

template <class T>
void launch(const FusedMoeParams<T>& p, Stream stream) {
  if (p.few()) return launch_products<cdna::SplitGemm<T>>(p, stream);
  if (p.rows < kTallRows) return launch_products<cdna::Gemm<T, 1>>(p, stream);
  launch_products<cdna::Gemm<T, 2>>(p, stream);
}

template void launch(const FusedMoeParams<float>&, Stream);
template void launch(const FusedMoeParams<bf16>&, Stream);
template void launch(const FusedMoeParams<fp16>&, Stream);

}  // namespace blockdraft
#pragma clang force_cuda_host_device end
#endif
