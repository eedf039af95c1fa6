// commit's arguments, which blockdraft.ops has checked, as parameters.
#include "ops/torch.h"

#include <initializer_list>

#include "ops/commit/params.h"

namespace blockdraft {

// Whether every row of these tensors is aligned to 16 bytes and a multiple of 16 bytes long.
static bool aligned(std::initializer_list<Tensor> tensors) {
  for (const Tensor& t : tensors) {
    const int64_t unit = 16 / item_size(t);
    if (reinterpret_cast<uintptr_t>(t.data_ptr()) % 16) return false;
    if (t.size(t.dim() - 1) % unit) return false;
    for (int64_t d = 0; d + 1 < t.dim(); ++d)
      if (t.stride(d) % unit) return false;
  }
  return true;
}

// `unit`: elements of a unit.
template <class U, int kStrides>
static View<U, kStrides> view_in_units(const Tensor& t, int64_t unit) {
  View<U, kStrides> out = view<U, kStrides>(t);
  for (int64_t& stride : out.stride) stride /= unit;
  return out;
}

static void commit_torch(Tensor qk, Tensor v_late, Tensor accepted, Tensor cu_rows,
                         Tensor prefix_lens, Tensor conv_state, Tensor late_state, Tensor slots) {
  auto run = [&]<class U>(U, int64_t unit) {
    const CommitParams<U> p{.qk = view_in_units<const U, 2>(qk, unit),
                            .v_late = view_in_units<const U, 2>(v_late, unit),
                            .accepted = data<int32_t>(accepted),
                            .cu_rows = data<int32_t>(cu_rows),
                            .prefix_lens = data<int32_t>(prefix_lens),
                            .conv_state = view_in_units<U, 3>(conv_state, unit),
                            .late_state = view_in_units<U, 2>(late_state, unit),
                            .slots = data<int32_t>(slots),
                            .batch = int(accepted.size(0)),
                            .layers = int(qk.size(0)),
                            .channels = int(qk.size(2) / unit),
                            .half = int(v_late.size(2) / unit),
                            .depth = int(conv_state.size(2))};
    launch_on_device_of(qk, p);
  };
  if (aligned({qk, v_late, conv_state, late_state}))
    run(Bits128{}, 16 / item_size(qk));
  else if (item_size(qk) == 2)
    run(uint16_t{}, 1);
  else
    run(uint32_t{}, 1);
}

void register_commit(torch::stable::detail::StableLibrary& library) {
  BLOCKDRAFT_REGISTER(library, commit)
}

}  // namespace blockdraft
