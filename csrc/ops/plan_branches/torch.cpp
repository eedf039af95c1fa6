// plan_branches' arguments, which blockdraft.ops has checked, as parameters.
#include "ops/torch.h"

#include "ops/plan_branches/params.h"

namespace blockdraft {

static void plan_branches_torch(Tensor accept, Tensor mask_accept, Tensor draft_len,
                                Tensor branch) {
  if (branch.numel() == 0) return;
  auto run = [&]<class T>(T) {
    const PlanParams<T> p{.accept = view<const T, 1>(accept),
                          .mask_accept = view<const T, 1>(mask_accept),
                          .draft_len = data<int32_t>(draft_len),
                          .branch = view<int32_t, 1>(branch),
                          .batch = int(accept.size(0)),
                          .drafts = int(accept.size(1)),
                          .masks = int(mask_accept.size(1)),
                          .proposals = int(branch.size(1))};
    launch_on_device_of(accept, p);
  };
  if (accept.scalar_type() == torch::headeronly::ScalarType::Double)
    run(double{});
  else
    run(float{});
}

void register_plan_branches(torch::stable::detail::StableLibrary& library) {
  BLOCKDRAFT_REGISTER(library, plan_branches)
}

}  // namespace blockdraft
