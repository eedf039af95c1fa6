// CPU launcher of linear: each thread takes the next item that is left.
#include "base/parallel.h"
#include "ops/linear/body.h"
#include "tile/cpu/gemm.h"

namespace blockdraft {

constexpr int64_t kLinearWork = 1 << 18;  // multiply-adds that are worth another thread

// Channels of a tile: few enough for all threads, enough to be worth one.
template <class Gemm, class T>
int tile_rows(const LinearParams<T>& p, int threads) {
  const int64_t each = int64_t(p.rows) * most(p.inputs, 1);
  const int64_t worth = ceil_div(kLinearWork, each);
  const int64_t even = ceil_div(p.outputs, threads);
  return int(least<int64_t>(ceil_div<int64_t>(most(worth, even), 4) * 4, Gemm::kRows));
}

template <class T>
void launch(const LinearParams<T>& p, const Parallel& parallel) {
  using Gemm = cpu::Gemm<T>;
  const int rows = tile_rows<Gemm>(p, parallel.threads);
  schedule(p, rows, Gemm::kGroupColumns, [&]<LinearStep kStep>(int64_t groups) {
    parallel.each(groups, [&](int64_t id) {
      thread_local Gemm gemm;
      linear(gemm, p, id, rows);
    });
  });
}

template void launch(const LinearParams<float>&, const Parallel&);
template void launch(const LinearParams<bf16>&, const Parallel&);
template void launch(const LinearParams<fp16>&, const Parallel&);

}  // namespace blockdraft
