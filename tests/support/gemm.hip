// The tile layer's gemm on CDNA, for the emulator and for offline compilation.
#include <stdint.h>

#pragma clang force_cuda_host_device begin
#include "bodies.h"
#include "tile/cdna/gemm.h"
#pragma clang force_cuda_host_device end

namespace blockdraft {

template <class Gemm, class T>
BLOCKDRAFT_KERNEL(cdna::kThreads, 2)
gemm_kernel(const T* w, const T* x, const int* tokens, const float* bias, float* y, int rows,
            int columns, int depth) {
  __attribute__((shared)) static typename Gemm::Memory memory;
  Gemm gemm(memory);
  gated_product(gemm, w, x, tokens, bias, y, rows, columns, depth);
}

#define BLOCKDRAFT_INSTANTIATE_GEMM(T, ...)     \
  template BLOCKDRAFT_KERNEL(cdna::kThreads, 2) \
  gemm_kernel<__VA_ARGS__, T>(const T*, const T*, const int*, const float*, float*, int, int, int);
#define BLOCKDRAFT_INSTANTIATE(T)                    \
  BLOCKDRAFT_INSTANTIATE_GEMM(T, cdna::SplitGemm<T>) \
  BLOCKDRAFT_INSTANTIATE_GEMM(T, cdna::Gemm<T, 1>)
BLOCKDRAFT_INSTANTIATE(float)
BLOCKDRAFT_INSTANTIATE(bf16)
BLOCKDRAFT_INSTANTIATE_GEMM(bf16, cdna::Gemm<bf16, 2>)
BLOCKDRAFT_INSTANTIATE(fp16)
BLOCKDRAFT_INSTANTIATE_GEMM(fp16, cdna::Gemm<fp16, 2>)
#undef BLOCKDRAFT_INSTANTIATE
#undef BLOCKDRAFT_INSTANTIATE_GEMM

}  // namespace blockdraft
