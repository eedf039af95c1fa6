// GPU launcher of zaya_router for gfx942 and gfx950: the down projection, whose channels and depth
// are divided among many groups; then the rest, for up to 16 tokens by each group.
#include "tile/cdna/launch.h"

#pragma clang force_cuda_host_device begin
#include "ops/zaya_router/body.h"
#include "tile/cdna/gemm.h"
#pragma clang force_cuda_host_device end

namespace blockdraft {

template <class T, RouterStep kStep>
BLOCKDRAFT_KERNEL(cdna::kThreads, 2)
zaya_router_kernel(ZayaRouterParams<T> p) {
  cdna::use_global_pointers(p);
  const int64_t id = cdna::group_index();
  if constexpr (kStep == RouterStep::kProject) {
    using Gemm = cdna::SplitGemm<T>;
    __attribute__((shared)) static typename Gemm::Memory memory;
    Gemm gemm(memory);
    project(gemm, p, id, Gemm::kRows);
  } else {
    alignas(16) __attribute__((shared)) static float memory[kRouterFloats];
    cdna::LayerGemm<T, 2, 1> gemm;
    route(gemm, p, id, p.columns_in(kRouterFloats), memory);
  }
}

#define BLOCKDRAFT_INSTANTIATE_STEP(T, step)    \
  template BLOCKDRAFT_KERNEL(cdna::kThreads, 2) \
  zaya_router_kernel<T, RouterStep::step>(ZayaRouterParams<T>);
#define BLOCKDRAFT_INSTANTIATE(T)          \
  BLOCKDRAFT_INSTANTIATE_STEP(T, kProject) \
  BLOCKDRAFT_INSTANTIATE_STEP(T, kRoute)
BLOCKDRAFT_INSTANTIATE(float)
BLOCKDRAFT_INSTANTIATE(bf16)
BLOCKDRAFT_INSTANTIATE(fp16)
#undef BLOCKDRAFT_INSTANTIATE
#undef BLOCKDRAFT_INSTANTIATE_STEP

}  // namespace blockdraft

#ifdef BLOCKDRAFT_HIP_RUNTIME
#pragma clang force_cuda_host_device begin  // as params.h declares it
namespace blockdraft {

template <class T>
void launch(const ZayaRouterParams<T>& p, Stream stream) {
  using Gemm = cdna::SplitGemm<T>;
  static_assert(kRouterColumns <= cdna::LayerGemm<T, 2, 1>::kGroupColumns);
  schedule(p, Gemm::kRows, Gemm::kGroupColumns, p.columns_in(kRouterFloats),
           [&]<RouterStep kStep>(int64_t groups) {
             start(zaya_router_kernel<T, kStep>, groups, cdna::kThreads, stream, p);
           });
}

template void launch(const ZayaRouterParams<float>&, Stream);
template void launch(const ZayaRouterParams<bf16>&, Stream);
template void launch(const ZayaRouterParams<fp16>&, Stream);

}  // namespace blockdraft
#pragma clang force_cuda_host_device end
#endif
