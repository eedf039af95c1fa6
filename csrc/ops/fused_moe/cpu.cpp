// CPU launcher of fused_moe: each thread takes the next item that is left.
#include "base/parallel.h"
#include "ops/fused_moe/body.h"
#include "tile/cpu/gemm.h"

namespace blockdraft {

template <class T, class W>
void launch(const FusedMoeParams<T, W>& p, const Parallel& parallel) {
  using Gemm = cpu::Gemm<T, W>;
  schedule(p, Gemm::kRows, Gemm::kGroupColumns, [&]<MoeStep kStep>(int64_t groups) {
    if constexpr (kStep == MoeStep::kDispatch) return launch(p.dispatch(), parallel);
    // Reading a weight takes as long as multiplying eight.
    const int64_t reads = 8 * int64_t(least(p.pairs(), p.num_experts));
    const int64_t product = (reads + p.pairs()) * p.hidden * p.inner;
    const int64_t work = kStep == MoeStep::kGateUp ? 2 * product
                         : kStep == MoeStep::kDown ? product
                                                   : int64_t(p.pairs()) * p.hidden;
    parallel.each(groups, work, [&](int64_t id) {
      thread_local Gemm gemm;
      int32_t found[Gemm::kGroupColumns];
      fused_moe<kStep>(gemm, p, id, found);
    });
  });
}

#define BLOCKDRAFT_INSTANTIATE(T)                                            \
  template void launch(const FusedMoeParams<T>&, const Parallel&);           \
  template void launch(const FusedMoeParams<T, e4m3fn>&, const Parallel&);   \
  template void launch(const FusedMoeParams<T, e4m3fnuz>&, const Parallel&); \
  template void launch(const FusedMoeParams<T, e2m1x2>&, const Parallel&);
BLOCKDRAFT_INSTANTIATE(float)
BLOCKDRAFT_INSTANTIATE(bf16)
BLOCKDRAFT_INSTANTIATE(fp16)
#undef BLOCKDRAFT_INSTANTIATE

}  // namespace blockdraft
