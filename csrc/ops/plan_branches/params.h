// Arguments of plan_branches' kernel, in the order of blockdraft.ops.plan_branches.Args.
#pragma once

#include "base/device.h"
#include "base/numbers.h"
#include "base/view.h"

namespace blockdraft {

constexpr int kPlanLevels = 64;  // a set of levels is the bits of a number

template <class T>
struct PlanParams {
  View<const T, 1> accept;       // [batch][drafts]
  View<const T, 1> mask_accept;  // [drafts][masks]
  const int32_t* draft_len;      // [batch]
  View<int32_t, 1> branch;       // [batch][proposals]

  int batch, drafts, masks, proposals;

  int levels() const { return drafts + 1; }

  BLOCKDRAFT_POINTERS(accept, mask_accept, draft_len, branch)
};

template <class T>
void launch(const PlanParams<T>&, const Parallel&);
template <class T>
void launch(const PlanParams<T>&, Stream);

}  // namespace blockdraft
