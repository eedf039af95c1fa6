// CPU launcher of plan_branches: a request is an item.
#include "base/parallel.h"
#include "ops/plan_branches/body.h"
#include "tile/cpu/group.h"

namespace blockdraft {

constexpr int kPlanGrain = 16;  // requests that are worth another thread

template <class T>
void launch(const PlanParams<T>& p, const Parallel& parallel) {
  schedule(p, [&]<PlanStep>(int64_t requests) {
    parallel(requests, kPlanGrain, [&](int64_t begin, int64_t end) {
      cpu::Group group;
      PlanMemory memory;
      for (int64_t request = begin; request < end; ++request)
        plan_branches(group, p, memory, int(request));
    });
  });
}

template void launch(const PlanParams<float>&, const Parallel&);
template void launch(const PlanParams<double>&, const Parallel&);

}  // namespace blockdraft
