// fused_moe's arguments, which blockdraft.ops has checked, as parameters.
#include "ops/torch.h"

#include "ops/fused_moe/params.h"

namespace blockdraft {

template <class W>
ScaleView<W> scales(const Optional& t) {
  return view<const typename Format<W>::Scale, 2>(t);
}

// Calls f with what the weights are made of: a format with scales, else `type`. Of MXFP4, whose
// dtype the stable ABI does not know, a row has half as many bytes as `depth`.
template <class T, class F>
void for_format(const Tensor& weights, int64_t depth, T type, F f) {
  if (2 * weights.size(2) == depth) return f(e2m1x2{});
  switch (weights.scalar_type()) {
    case torch::headeronly::ScalarType::Float8_e4m3fn:
      return f(e4m3fn{});
    case torch::headeronly::ScalarType::Float8_e4m3fnuz:
      return f(e4m3fnuz{});
    default:
      return f(type);
  }
}

static void fused_moe_torch(Tensor x, Tensor experts, Tensor weights, Tensor gate_up, Tensor down,
                            Optional gate_up_scale, Optional down_scale, Optional skip_prob,
                            int64_t skip, Tensor out, Tensor order, Tensor offsets,
                            Tensor activations, Optional partials) {
  if (x.numel() == 0) return;
  auto start = [&]<class T, class W>(T, W) {
    const FusedMoeParams<T, W> p{.x = view<const T, 1>(x),
                                 .experts = view<const int32_t, 1>(experts),
                                 .weights = view<const float, 1>(weights),
                                 .gate_up = view<const W, 2>(gate_up),
                                 .down = view<const W, 2>(down),
                                 .gate_up_scale = scales<W>(gate_up_scale),
                                 .down_scale = scales<W>(down_scale),
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
                                 .inner = int(activations.size(1))};
    launch_on_device_of(x, p);
  };
  for_float_type(x, [&]<class T>(T type) {
    for_format(gate_up, x.size(1), type, [&](auto format) { start(type, format); });
  });
}

void register_fused_moe(torch::stable::detail::StableLibrary& library) {
  BLOCKDRAFT_REGISTER(library, fused_moe)
}

}  // namespace blockdraft
