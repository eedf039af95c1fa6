// CPU launcher of residual_norm: a row is an item.
#include "base/parallel.h"
#include "ops/residual_norm/body.h"
#include "tile/cpu/group.h"

namespace blockdraft {

constexpr int kNormGrain = 1 << 16;  // elements that are worth another thread

template <class T>
void launch(const ResidualNormParams<T>& p, const Parallel& parallel) {
  schedule(p, 1, [&]<ResidualNormStep>(int64_t rows) {
    parallel(rows, ceil_div(kNormGrain, p.hidden), [&](int64_t begin, int64_t end) {
      cpu::Group group;
      for (int64_t row = begin; row < end; ++row) residual_norm(group, p, row, 1);
    });
  });
}

template void launch(const ResidualNormParams<float>&, const Parallel&);
template void launch(const ResidualNormParams<bf16>&, const Parallel&);
template void launch(const ResidualNormParams<fp16>&, const Parallel&);

}  // namespace blockdraft
