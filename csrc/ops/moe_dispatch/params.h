// Arguments of moe_dispatch's kernel, in the order of blockdraft.ops.moe_dispatch.Args.
#pragma once

#include "base/device.h"
#include "base/numbers.h"
#include "base/view.h"

namespace blockdraft {

struct DispatchParams {
  View<const int32_t, 1> experts;  // [rows][choices]
  int num_experts;
  int32_t* order;    // [pairs]
  int32_t* offsets;  // [num_experts + 1]

  int rows, choices;

  int pairs() const { return rows * choices; }

  BLOCKDRAFT_POINTERS(experts, order, offsets)
};

void launch(const DispatchParams&, const Parallel&);
void launch(const DispatchParams&, Stream);

}  // namespace blockdraft
