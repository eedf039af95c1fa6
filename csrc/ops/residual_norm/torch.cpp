// residual_norm's arguments, which blockdraft.ops has checked, as parameters.
#include "ops/torch.h"

#include "ops/residual_norm/params.h"

namespace blockdraft {

static void residual_norm_torch(Tensor x, Tensor weight, double eps, Optional scale, Optional bias,
                                Optional residual, Optional residual_scale, Optional residual_bias,
                                Optional index, Tensor norm, Optional stream) {
  if (norm.numel() == 0) return;
  for_float_type(x, [&]<class T>(T) {
    const ResidualNormParams<T> p{.x = view<const T, 1>(x),
                                  .weight = data<T>(weight),
                                  .eps = float(eps),
                                  .scale = data<T>(scale),
                                  .bias = data<T>(bias),
                                  .residual = view<const float, 1>(residual),
                                  .residual_scale = data<T>(residual_scale),
                                  .residual_bias = data<T>(residual_bias),
                                  .index = data<int32_t>(index),
                                  .norm = view<T, 1>(norm),
                                  .stream = view<float, 1>(stream),
                                  .rows = int(norm.size(0)),
                                  .hidden = int(norm.size(1))};
    launch_on_device_of(x, p);
  });
}

void register_residual_norm(torch::stable::detail::StableLibrary& library) {
  BLOCKDRAFT_REGISTER(library, residual_norm)
}

}  // namespace blockdraft
