// fused_moe's arguments, which blockdraft.ops has checked, as parameters.
#include "ops/torch.h"

#include "ops/fused_moe/params.h"

namespace blockdraft {

static void fused_moe_torch(Tensor x, Tensor experts, Tensor weights, Tensor gate_up, Tensor down,
                            Optional gate_up_scale, Optional down_scale, Optional skip_prob,
                            int64_t skip, Tensor out, Tensor order, Tensor offsets,
                            Tensor activations, Optional partials) {
  if (x.numel() == 0) return;
  for_float_type(x, [&]<class T>(T) {
    const FusedMoeParams<T> p{.x = view<const T, 1>(x),
                              .experts = view<const int32_t, 1>(experts),
                              .weights = view<const float, 1>(weights),
                              .gate_up = view<const T, 2>(gate_up),
                              .down = view<const T, 2>(down),
                              .gate_up_scale = data<uint8_t>(gate_up_scale),
                              .down_scale = data<uint8_t>(down_scale),
                              .skip_prob = data<float>(skip_prob),
                              .skip = int(skip),
                              .out = view<T, 1>(out),
                              .order = data<int32_t>(order),
                              .offsets = data<int32_t>(offsets),
                              .activations = data<T>(activations),
                              .partials = data<float>(partials),
                              .rows = int(x.size(0)),
                              .choices = int(experts.size(1)),
                              .num_experts = int(gate_up.size(0)),
                              .hidden = int(x.size(1)),
                              .inner = int(down.size(2))};
    launch_on_device_of(x, p);
  });
}

void register_fused_moe(torch::stable::detail::StableLibrary& library) {
  BLOCKDRAFT_REGISTER(library, fused_moe)
}

}  // namespace blockdraft
