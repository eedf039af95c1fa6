// linear's arguments, which blockdraft.ops has checked, as parameters. On a GPU torch's library is
// used.
#include "ops/torch.h"

#include "ops/linear/params.h"

namespace blockdraft {

static void linear_torch(Tensor x, Tensor weight, Optional bias, Tensor out) {
  if (out.numel() == 0) return;
  for_float_type(x, [&]<class T>(T) {
    launch_on_threads(LinearParams<T>{.x = view<const T, 1>(x),
                                      .weight = view<const T, 1>(weight),
                                      .bias = data<T>(bias),
                                      .out = view<T, 1>(out),
                                      .rows = int(x.size(0)),
                                      .inputs = int(x.size(1)),
                                      .outputs = int(weight.size(0))});
  });
}

void register_linear(torch::stable::detail::StableLibrary& library) {
  BLOCKDRAFT_REGISTER(library, linear)
}

}  // namespace blockdraft
