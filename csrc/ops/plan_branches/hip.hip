// GPU launcher of plan_branches: a wave for each request.
#include "tile/cdna/launch.h"

#pragma clang force_cuda_host_device begin
#include "ops/plan_branches/body.h"
#include "tile/cdna/group.h"
#pragma clang force_cuda_host_device end

namespace blockdraft {

constexpr int kPlanThreads = 64;

template <class T, PlanStep kStep>
BLOCKDRAFT_KERNEL(kPlanThreads, 1)
plan_branches_kernel(PlanParams<T> p) {
  __attribute__((shared)) static PlanMemory memory;
  cdna::use_global_pointers(p);
  cdna::Group<kPlanThreads> group;
  plan_branches(group, p, memory, cdna::group_index());
}

#define BLOCKDRAFT_INSTANTIATE(T)             \
  template BLOCKDRAFT_KERNEL(kPlanThreads, 1) \
  plan_branches_kernel<T, PlanStep::kPlan>(PlanParams<T>);
BLOCKDRAFT_INSTANTIATE(float)
BLOCKDRAFT_INSTANTIATE(double)
#undef BLOCKDRAFT_INSTANTIATE

}  // namespace blockdraft

#ifdef BLOCKDRAFT_HIP_RUNTIME
#pragma clang force_cuda_host_device begin  // as params.h declares it
namespace blockdraft {

template <class T>
void launch(const PlanParams<T>& p, Stream stream) {
  schedule(p, [&]<PlanStep kStep>(int64_t groups) {
    start(plan_branches_kernel<T, kStep>, groups, kPlanThreads, stream, p);
  });
}

template void launch(const PlanParams<float>&, Stream);
template void launch(const PlanParams<double>&, Stream);

}  // namespace blockdraft
#pragma clang force_cuda_host_device end
#endif
