// The tile layer's gemm on CDNA, for the emulator and for offline compilation.
#include <stdint.h>

#pragma clang force_cuda_host_device begin
#include "bodies.h"
#include "tile/cdna.h"
#pragma clang force_cuda_host_device end

namespace blockdraft {

template <class T, int kDim>
BLOCKDRAFT_KERNEL(cdna::kThreads, 2)
gemm_kernel(const T* a, const T* b, float* c, int m, int n, float scale) {
  using Tile = cdna::Tile<T, TestColumn, kDim>;
  __attribute__((shared)) static typename Tile::Memory memory;
  Tile tile(memory);
  gemm(tile, a, b, c, m, n, kDim, scale);
}

template BLOCKDRAFT_KERNEL(cdna::kThreads, 2)
gemm_kernel<float, 64>(const float*, const float*, float*, int, int, float);
template BLOCKDRAFT_KERNEL(cdna::kThreads, 2)
gemm_kernel<bf16, 64>(const bf16*, const bf16*, float*, int, int, float);
template BLOCKDRAFT_KERNEL(cdna::kThreads, 2)
gemm_kernel<fp16, 128>(const fp16*, const fp16*, float*, int, int, float);

}  // namespace blockdraft
