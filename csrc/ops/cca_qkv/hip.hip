// GPU launcher of cca_qkv for gfx942 and gfx950. A workgroup has a head of up to 32 rows (of bf16
// with head dim 128: 29), whose tokens are rounded to the element type in LDS, where the outputs
// then replace them.
#include "tile/cdna/launch.h"

#pragma clang force_cuda_host_device begin
#include "ops/cca_qkv/body.h"
#include "tile/cdna/gemm.h"
#pragma clang force_cuda_host_device end

namespace blockdraft {

template <class T>
using CcaGemm = cdna::LayerGemm<T, 1, 2>;

template <class T, CcaStep kStep, class C>
BLOCKDRAFT_KERNEL(cdna::kThreads, 6)
cca_qkv_kernel(CcaParams<T, C> p) {
  alignas(16) __attribute__((shared)) static char memory[kCcaBytes];
  cdna::use_global_pointers(p);
  CcaGemm<T> gemm;
  const int columns = cca_columns(p);
  cca_qkv(gemm, p, cdna::group_index(), columns,
          CcaMemory<T>(memory, columns, p.head_dim, p.taps0, p.taps1, false));
}

#define BLOCKDRAFT_INSTANTIATE(T, C)            \
  template BLOCKDRAFT_KERNEL(cdna::kThreads, 6) \
  cca_qkv_kernel<T, CcaStep::kConvolve, C>(CcaParams<T, C>);
BLOCKDRAFT_INSTANTIATE(float, float)
BLOCKDRAFT_INSTANTIATE(bf16, bf16)
BLOCKDRAFT_INSTANTIATE(fp16, fp16)
// Each device has its own fp8; a launch of the other's finds no kernel.
#ifndef __gfx942__
BLOCKDRAFT_INSTANTIATE(bf16, e4m3fn)
#endif
#ifndef __gfx950__
BLOCKDRAFT_INSTANTIATE(bf16, e4m3fnuz)
#endif
#undef BLOCKDRAFT_INSTANTIATE

}  // namespace blockdraft

#ifdef BLOCKDRAFT_HIP_RUNTIME
#pragma clang force_cuda_host_device begin  // as params.h declares it
namespace blockdraft {

template <class T, class C>
void launch(const CcaParams<T, C>& p, Stream stream) {
  if constexpr (Format<C>::kScaled && !std::is_same_v<T, bf16>)
    throw std::invalid_argument("cca_qkv: qk is bf16 beside a cache of fp8 on a GPU");
  else
    schedule(p, cca_columns(p), [&]<CcaStep kStep>(int64_t groups) {
      start(cca_qkv_kernel<T, kStep, C>, groups, cdna::kThreads, stream, p);
    });
}

#define BLOCKDRAFT_INSTANTIATE(T)                            \
  template void launch(const CcaParams<T>&, Stream);         \
  template void launch(const CcaParams<T, e4m3fn>&, Stream); \
  template void launch(const CcaParams<T, e4m3fnuz>&, Stream);
BLOCKDRAFT_INSTANTIATE(float)
BLOCKDRAFT_INSTANTIATE(bf16)
BLOCKDRAFT_INSTANTIATE(fp16)
#undef BLOCKDRAFT_INSTANTIATE

}  // namespace blockdraft
#pragma clang force_cuda_host_device end
#endif
