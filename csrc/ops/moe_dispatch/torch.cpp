// moe_dispatch's arguments, which blockdraft.ops has checked, as parameters.
#include "ops/torch.h"

#include "ops/moe_dispatch/params.h"

namespace blockdraft {

static void moe_dispatch_torch(Tensor experts, int64_t num_experts, Tensor order, Tensor offsets) {
  const DispatchParams p{.experts = view<const int32_t, 1>(experts),
                         .num_experts = int(num_experts),
                         .order = data<int32_t>(order),
                         .offsets = data<int32_t>(offsets),
                         .rows = int(experts.size(0)),
                         .choices = int(experts.size(1))};
  launch_on_device_of(experts, p);
}

void register_moe_dispatch(torch::stable::detail::StableLibrary& library) {
  BLOCKDRAFT_REGISTER(library, moe_dispatch)
}

}  // namespace blockdraft
