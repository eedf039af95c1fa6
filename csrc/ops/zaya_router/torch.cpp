// zaya_router's arguments, which blockdraft.ops has checked, as parameters.
#include "ops/torch.h"

#include "ops/zaya_router/params.h"

namespace blockdraft {

static void zaya_router_torch(Tensor hidden, Optional prev_state, Tensor down_weight,
                              Tensor down_bias, Optional eda_scale, Tensor norm_weight,
                              Tensor fc1_weight, Tensor fc1_bias, Tensor fc2_weight,
                              Tensor fc2_bias, Tensor out_weight, Tensor balancing_bias, double eps,
                              Optional live, Tensor weights, Tensor experts, Tensor skip_prob,
                              Tensor state) {
  if (hidden.size(0) == 0) return;
  for_float_type(hidden, [&]<class T>(T) {
    const ZayaRouterParams<T> p{.hidden = view<const T, 1>(hidden),
                                .prev_state = view<const T, 1>(prev_state),
                                .down_weight = view<const T, 1>(down_weight),
                                .down_bias = data<T>(down_bias),
                                .eda_scale = data<T>(eda_scale),
                                .norm_weight = data<T>(norm_weight),
                                .fc1_weight = view<const T, 1>(fc1_weight),
                                .fc1_bias = data<T>(fc1_bias),
                                .fc2_weight = view<const T, 1>(fc2_weight),
                                .fc2_bias = data<T>(fc2_bias),
                                .out_weight = view<const T, 1>(out_weight),
                                .balancing_bias = data<float>(balancing_bias),
                                .eps = float(eps),
                                .live = data<bool>(live),
                                .weights = view<float, 1>(weights),
                                .experts = view<int32_t, 1>(experts),
                                .skip_prob = data<float>(skip_prob),
                                .state = view<T, 1>(state),
                                .rows = int(hidden.size(0)),
                                .hidden_size = int(hidden.size(1)),
                                .channels = int(state.size(1)),
                                .classes = int(out_weight.size(0)),
                                .choices = int(weights.size(1))};
    launch_on_device_of(hidden, p);
  });
}

void register_zaya_router(torch::stable::detail::StableLibrary& library) {
  BLOCKDRAFT_REGISTER(library, zaya_router)
}

}  // namespace blockdraft
