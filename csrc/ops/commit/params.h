// Arguments of commit's kernel, in the order of blockdraft.ops.commit.Args.
#pragma once

#include "base/device.h"
#include "base/numbers.h"
#include "base/view.h"

namespace blockdraft {

typedef uint64_t Bits128 __attribute__((vector_size(16)));

// Data is copied in units of type U: 16 bytes if all tensors are aligned to that, else one element.
template <class U>
struct CommitParams {
  View<const U, 2> qk, v_late;  // [layers][rows][channels], [layers][rows][half]
  const int32_t* accepted;
  const int32_t* cu_rows;
  int32_t* prefix_lens;
  View<U, 3> conv_state;  // [layers][slots][depth][channels], oldest first
  View<U, 2> late_state;  // [layers][slots][half]
  const int32_t* slots;

  int batch, layers, channels, half, depth;  // channels and half in units

  BLOCKDRAFT_POINTERS(qk, v_late, accepted, cu_rows, prefix_lens, conv_state, late_state, slots)
};

template <class U>
void launch(const CommitParams<U>&, const Parallel&);
template <class U>
void launch(const CommitParams<U>&, Stream);

}  // namespace blockdraft
