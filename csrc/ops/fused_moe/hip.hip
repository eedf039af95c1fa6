// GPU launcher of fused_moe for gfx942 and gfx950. Few pairs are routed by the groups themselves,
// and the depth is split among the waves of a group.
#include "tile/cdna/launch.h"

#pragma clang force_cuda_host_device begin
#include "ops/fused_moe/body.h"
#include "tile/cdna/gemm.h"
#pragma clang force_cuda_host_device end

namespace blockdraft {

constexpr int kTallRows = 512;  // from so many on, a wave has two tiles of channels

template <class Gemm, MoeStep kStep, class T, class W>
BLOCKDRAFT_KERNEL(cdna::kThreads, Gemm::kWavesOfSimd)
fused_moe_kernel(FusedMoeParams<T, W> p) {
  struct Memory {
    typename Gemm::Memory gemm;
    int32_t found[Gemm::kGroupColumns];
  };
  __attribute__((shared)) static Memory memory;
  cdna::use_global_pointers(p);
  const int64_t groups = moe_groups(p, kStep, Gemm::kRows, Gemm::kGroupColumns);
  const int64_t id = cdna::contiguous_per_xcd(groups);
  if (id >= groups) return;
  Gemm gemm(memory.gemm);
  fused_moe<kStep>(gemm, p, id, memory.found);
}

#define BLOCKDRAFT_INSTANTIATE_STEP(T, W, step, ...)                      \
  template BLOCKDRAFT_KERNEL(cdna::kThreads, (__VA_ARGS__::kWavesOfSimd)) \
  fused_moe_kernel<__VA_ARGS__, MoeStep::step, T, W>(FusedMoeParams<T, W>);
#define BLOCKDRAFT_INSTANTIATE_GEMM(T, W, ...)            \
  BLOCKDRAFT_INSTANTIATE_STEP(T, W, kGateUp, __VA_ARGS__) \
  BLOCKDRAFT_INSTANTIATE_STEP(T, W, kDown, __VA_ARGS__)   \
  BLOCKDRAFT_INSTANTIATE_STEP(T, W, kCombine, __VA_ARGS__)
#define BLOCKDRAFT_INSTANTIATE(T, W)                       \
  BLOCKDRAFT_INSTANTIATE_GEMM(T, W, cdna::SplitGemm<T, W>) \
  BLOCKDRAFT_INSTANTIATE_GEMM(T, W, cdna::Gemm<T, 1, W>)   \
  BLOCKDRAFT_INSTANTIATE_GEMM(T, W, cdna::Gemm<T, 2, W>)
BLOCKDRAFT_INSTANTIATE(float, float)
BLOCKDRAFT_INSTANTIATE(bf16, bf16)
BLOCKDRAFT_INSTANTIATE(fp16, fp16)
BLOCKDRAFT_INSTANTIATE(bf16, e2m1x2)
// Each device has its own fp8; a launch of the other's finds no kernel.
#ifndef __gfx942__
BLOCKDRAFT_INSTANTIATE(bf16, e4m3fn)
#endif
#ifndef __gfx950__
BLOCKDRAFT_INSTANTIATE(bf16, e4m3fnuz)
#endif
#undef BLOCKDRAFT_INSTANTIATE
#undef BLOCKDRAFT_INSTANTIATE_GEMM
#undef BLOCKDRAFT_INSTANTIATE_STEP

}  // namespace blockdraft

#ifdef BLOCKDRAFT_HIP_RUNTIME
#pragma clang force_cuda_host_device begin  // as params.h declares it
namespace blockdraft {

template <class Gemm, class T, class W>
void launch_products(const FusedMoeParams<T, W>& p, Stream stream) {
  schedule(p, Gemm::kRows, Gemm::kGroupColumns, [&]<MoeStep kStep>(int64_t groups) {
    if constexpr (kStep == MoeStep::kDispatch) {
      launch(p.dispatch(), stream);
    } else {
      const int64_t padded = ceil_div<int64_t>(groups, 8) * 8;  // as many for each XCD
      start(fused_moe_kernel<Gemm, kStep, T, W>, padded, cdna::kThreads, stream, p);
    }
  });
}

template <class T, class W>
void launch(const FusedMoeParams<T, W>& p, Stream stream) {
  if constexpr (Format<W>::kScaled && !std::is_same_v<T, bf16>) {
    throw std::invalid_argument("fused_moe: weights with scales have bf16 tokens on a GPU");
  } else {
    if (p.few()) return launch_products<cdna::SplitGemm<T, W>>(p, stream);
    if (p.rows < kTallRows) return launch_products<cdna::Gemm<T, 1, W>>(p, stream);
    launch_products<cdna::Gemm<T, 2, W>>(p, stream);
  }
}

#define BLOCKDRAFT_INSTANTIATE(T)                                   \
  template void launch(const FusedMoeParams<T>&, Stream);           \
  template void launch(const FusedMoeParams<T, e4m3fn>&, Stream);   \
  template void launch(const FusedMoeParams<T, e4m3fnuz>&, Stream); \
  template void launch(const FusedMoeParams<T, e2m1x2>&, Stream);
BLOCKDRAFT_INSTANTIATE(float)
BLOCKDRAFT_INSTANTIATE(bf16)
BLOCKDRAFT_INSTANTIATE(fp16)
#undef BLOCKDRAFT_INSTANTIATE

}  // namespace blockdraft
#pragma clang force_cuda_host_device end
#endif
