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

template <class T, CcaStep kStep>
BLOCKDRAFT_KERNEL(cdna::kThreads, 6)
cca_qkv_kernel(CcaParams<T> p) {
  alignas(16) __attribute__((shared)) static char memory[kCcaBytes];
  cdna::use_global_pointers(p);
  CcaGemm<T> gemm;
  const int columns = cca_columns(p);
  cca_qkv(gemm, p, cdna::group_index(), columns,
          CcaMemory<T>(memory, columns, p.head_dim, p.taps0, p.taps1, false));
}

#define BLOCKDRAFT_INSTANTIATE(T)               \
  template BLOCKDRAFT_KERNEL(cdna::kThreads, 6) \
  cca_qkv_kernel<T, CcaStep::kConvolve>(CcaParams<T>);
BLOCKDRAFT_INSTANTIATE(float)
BLOCKDRAFT_INSTANTIATE(bf16)
BLOCKDRAFT_INSTANTIATE(fp16)
#undef BLOCKDRAFT_INSTANTIATE

}  // namespace blockdraft

#ifdef BLOCKDRAFT_HIP_RUNTIME
#pragma clang force_cuda_host_device begin  // as params.h declares it
namespace blockdraft {

template <class T>
void launch(const CcaParams<T>& p, Stream stream) {
  schedule(p, cca_columns(p), [&]<CcaStep kStep>(int64_t groups) {
    start(cca_qkv_kernel<T, kStep>, groups, cdna::kThreads, stream, p);
  });
}

template void launch(const CcaParams<float>&, Stream);
template void launch(const CcaParams<bf16>&, Stream);
template void launch(const CcaParams<fp16>&, Stream);

}  // namespace blockdraft
#pragma clang force_cuda_host_device end
#endif
