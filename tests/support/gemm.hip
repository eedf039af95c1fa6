// The tile layer's gemm on CDNA, for the emulator and for offline compilation.
#include <stdint.h>

#pragma clang force_cuda_host_device begin
#include "bodies.h"
#include "tile/cdna/gemm.h"
#pragma clang force_cuda_host_device end

namespace blockdraft {

template <class T, int kPanels>
BLOCKDRAFT_KERNEL(cdna::kThreads, 2)
gemm_kernel(const T* w, const T* x, const int* tokens, const float* bias, float* y, int rows,
            int columns, int depth) {
  using Gemm = cdna::Gemm<T, kPanels>;
  __attribute__((shared)) static typename Gemm::Memory memory;
  Gemm gemm(memory);
  gated_product(gemm, w, x, tokens, bias, y, rows, columns, depth);
}

#define BLOCKDRAFT_INSTANTIATE(T, panels)       \
  template BLOCKDRAFT_KERNEL(cdna::kThreads, 2) \
  gemm_kernel<T, panels>(const T*, const T*, const int*, const float*, float*, int, int, int);
BLOCKDRAFT_INSTANTIATE(float, 2)
BLOCKDRAFT_INSTANTIATE(bf16, 2)
BLOCKDRAFT_INSTANTIATE(fp16, 2)
#undef BLOCKDRAFT_INSTANTIATE

}  // namespace blockdraft
