// CPU launcher of linear: each thread takes the next item that is left.
#include "base/parallel.h"
#include "ops/linear/body.h"
#include "tile/cpu/gemm.h"

namespace blockdraft {

template <class T>
void launch(const LinearParams<T>& p, const Parallel& parallel) {
  using Gemm = cpu::Gemm<T>;
  const int rows = cpu::rows_of_tile<Gemm>(p.outputs, parallel.threads);
  const int64_t work = int64_t(p.rows) * p.inputs * p.outputs;
  schedule(p, rows, Gemm::kGroupColumns, [&]<LinearStep kStep>(int64_t groups) {
    parallel.each(groups, work, [&](int64_t id) {
      thread_local Gemm gemm;
      linear(gemm, p, id, rows);
    });
  });
}

template void launch(const LinearParams<float>&, const Parallel&);
template void launch(const LinearParams<bf16>&, const Parallel&);
template void launch(const LinearParams<fp16>&, const Parallel&);

}  // namespace blockdraft
