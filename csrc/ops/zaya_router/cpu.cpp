// CPU launcher of zaya_router: each thread takes the next item that is left.
#include <vector>

#include "base/parallel.h"
#include "ops/zaya_router/body.h"
#include "tile/cpu/gemm.h"

namespace blockdraft {

template <class T>
void launch(const ZayaRouterParams<T>& p, const Parallel& parallel) {
  using Gemm = cpu::Gemm<T>;
  const int routed = least(Gemm::kGroupColumns, ceil_div(p.rows, parallel.threads));
  const int rows = cpu::rows_of_tile<Gemm>(p.channels, parallel.threads);
  schedule(p, rows, Gemm::kGroupColumns, routed, [&]<RouterStep kStep>(int64_t groups) {
    const int64_t inputs =
        kStep == RouterStep::kProject ? p.hidden_size : 2 * p.channels + p.classes;
    parallel.each(groups, int64_t(p.rows) * p.channels * inputs, [&](int64_t id) {
      thread_local Gemm gemm;
      thread_local std::vector<float> memory;
      if constexpr (kStep == RouterStep::kProject) return project(gemm, p, id, rows);
      memory.resize(2 * routed * p.stride());
      route(gemm, p, id, routed, memory.data());
    });
  });
}

template void launch(const ZayaRouterParams<float>&, const Parallel&);
template void launch(const ZayaRouterParams<bf16>&, const Parallel&);
template void launch(const ZayaRouterParams<fp16>&, const Parallel&);

}  // namespace blockdraft
