// CPU launcher of fused_moe: each thread takes the next item that is left.
#include "base/parallel.h"
#include "ops/fused_moe/body.h"
#include "tile/cpu/gemm.h"

namespace blockdraft {

template <class T>
void launch(const FusedMoeParams<T>& p, const Parallel& parallel) {
  using Gemm = cpu::Gemm<T>;
  schedule(p, Gemm::kRows, Gemm::kGroupColumns, [&]<MoeStep kStep>(int64_t groups) {
    if constexpr (kStep == MoeStep::kDispatch) return launch(p.dispatch(), parallel);
    parallel.each(groups, int64_t(p.pairs()) * p.hidden * p.inner, [&](int64_t id) {
      thread_local Gemm gemm;
      int32_t found[kFewPairs];
      fused_moe<kStep>(gemm, p, id, found);
    });
  });
}

template void launch(const FusedMoeParams<float>&, const Parallel&);
template void launch(const FusedMoeParams<bf16>&, const Parallel&);
template void launch(const FusedMoeParams<fp16>&, const Parallel&);

}  // namespace blockdraft
