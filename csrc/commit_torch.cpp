// commit on torch tensors, which blockdraft.ops has checked: arguments -> parameters -> the
// device's launcher.
#include "commit.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>

#include "torch_launch.h"

namespace blockdraft {

using torch::stable::Tensor;

template <class U>
void commit_host(const CommitParams<U>&, const Parallel&);
template <class U>
void commit_hip(const CommitParams<U>&, void* stream);

// Whether every row of these tensors starts at, and consists of, multiples of 16 bytes.
static bool aligned(std::initializer_list<Tensor> tensors) {
  for (const Tensor& t : tensors) {
    const int64_t unit = 16 / item_size(t);
    bool fits =
        reinterpret_cast<uintptr_t>(t.data_ptr()) % 16 == 0 && t.size(t.dim() - 1) % unit == 0;
    for (int64_t d = 0; d + 1 < t.dim(); ++d) fits &= t.stride(d) % unit == 0;
    if (!fits) return false;
  }
  return true;
}

static void commit_torch(Tensor qk, Tensor v_late, Tensor accepted, Tensor cu_rows,
                         Tensor prefix_lens, Tensor, Tensor, int64_t, bool, int64_t, int64_t,
                         Tensor conv_state, Tensor late_state, Tensor slots) {
  auto run = [&](auto type, int64_t unit) {  // a unit is so many elements
    using U = decltype(type);
    CommitParams<U> p{};
    p.qk = data<U>(qk), p.v_late = data<U>(v_late), p.conv_state = data<U>(conv_state),
    p.late_state = data<U>(late_state);
    p.qk_layer = qk.stride(0) / unit, p.qk_row = qk.stride(1) / unit;
    p.v_layer = v_late.stride(0) / unit, p.v_row = v_late.stride(1) / unit;
    p.conv_layer = conv_state.stride(0) / unit, p.conv_slot = conv_state.stride(1) / unit,
    p.conv_tap = conv_state.stride(2) / unit;
    p.late_layer = late_state.stride(0) / unit, p.late_slot = late_state.stride(1) / unit;
    p.accepted = data<int32_t>(accepted), p.cu_rows = data<int32_t>(cu_rows),
    p.slots = data<int32_t>(slots);
    p.prefix_lens = data<int32_t>(prefix_lens);
    p.batch = int(accepted.size(0)), p.layers = int(qk.size(0)), p.depth = int(conv_state.size(2));
    p.channels = int(qk.size(2) / unit), p.half = int(v_late.size(2) / unit);
    BLOCKDRAFT_LAUNCH(qk, commit, p);
  };
  if (aligned({qk, v_late, conv_state, late_state}))
    run(Bits128{}, 16 / item_size(qk));
  else if (item_size(qk) == 2)
    run(uint16_t{}, 1);
  else
    run(uint32_t{}, 1);
}

void register_commit(torch::stable::detail::StableLibrary& library) {
  library.impl("commit_cpp", TORCH_BOX(&commit_torch));
}

}  // namespace blockdraft
