// GPU launcher of moe_dispatch: one workgroup.
#include "tile/cdna/launch.h"

#pragma clang force_cuda_host_device begin
#include "ops/moe_dispatch/body.h"
#include "tile/cdna/group.h"
#pragma clang force_cuda_host_device end

namespace blockdraft {

constexpr int kDispatchThreads = 256;

template <DispatchStep kStep>
BLOCKDRAFT_KERNEL(kDispatchThreads, 1)
moe_dispatch_kernel(DispatchParams p) {
  __attribute__((shared)) static int32_t counts[kDispatchCounts];
  cdna::use_global_pointers(p);
  cdna::Group<kDispatchThreads> group;
  dispatch(group, p, counts, dispatch_shift(p.num_experts));
}

template BLOCKDRAFT_KERNEL(kDispatchThreads, 1)
moe_dispatch_kernel<DispatchStep::kDispatch>(DispatchParams);

}  // namespace blockdraft

#ifdef BLOCKDRAFT_HIP_RUNTIME
#pragma clang force_cuda_host_device begin  // as params.h declares it
namespace blockdraft {

void launch(const DispatchParams& p, Stream stream) {
  schedule(p, [&]<DispatchStep kStep>(int64_t groups) {
    start(moe_dispatch_kernel<kStep>, groups, kDispatchThreads, stream, p);
  });
}

}  // namespace blockdraft
#pragma clang force_cuda_host_device end
#endif
