// CPU launcher of moe_dispatch: one thread.
#include <vector>

#include "base/parallel.h"
#include "ops/moe_dispatch/body.h"
#include "tile/cpu/group.h"

namespace blockdraft {

void launch(const DispatchParams& p, const Parallel&) {
  thread_local std::vector<int32_t> counts;
  counts.resize(2 * p.num_experts);
  schedule(p, [&]<DispatchStep>(int64_t) {
    cpu::Group group;
    dispatch(group, p, counts.data(), 0);
  });
}

}  // namespace blockdraft
