// CPU launcher of linear: each thread takes the next item that is left.
#include "base/parallel.h"
#include "ops/linear/body.h"
#include "tile/cpu/gemm.h"

namespace blockdraft {

template <class T>
void launch(const LinearParams<T>& p, const Parallel& parallel) {
  using Gemm = cpu::Gemm<T>;
  schedule(p, Gemm::kRows, Gemm::kGroupColumns, [&]<LinearStep kStep>(int64_t groups) {
    parallel.each(groups, [&](int64_t id) {
      thread_local Gemm gemm;
      linear(gemm, p, id);
    });
  });
}

template void launch(const LinearParams<float>&, const Parallel&);
template void launch(const LinearParams<bf16>&, const Parallel&);
template void launch(const LinearParams<fp16>&, const Parallel&);

}  // namespace blockdraft
