// CPU launcher of fused_moe: each thread takes the next item that is left.
#include <atomic>

#include "base/parallel.h"
#include "ops/fused_moe/body.h"
#include "tile/cpu/gemm.h"

namespace blockdraft {

template <class T>
void launch(const FusedMoeParams<T>& p, const Parallel& parallel) {
  using Gemm = cpu::Gemm<T>;
  schedule(p, Gemm::kRows, Gemm::kGroupColumns, [&]<MoeStep kStep>(int64_t groups) {
    if constexpr (kStep == MoeStep::kDispatch) return launch(p.dispatch(), parallel);
    std::atomic<int64_t> taken{0};
    parallel(groups, 1, [&](int64_t, int64_t) {
      thread_local Gemm gemm;
      int32_t found[kFewPairs];
      for (int64_t id; (id = taken.fetch_add(1, std::memory_order_relaxed)) < groups;)
        fused_moe<kStep>(gemm, p, id, found);
    });
  });
}

template void launch(const FusedMoeParams<float>&, const Parallel&);
template void launch(const FusedMoeParams<bf16>&, const Parallel&);
template void launch(const FusedMoeParams<fp16>&, const Parallel&);

}  // namespace blockdraft
