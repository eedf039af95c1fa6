// The launches of zaya_router.
#pragma once

#include "ops/zaya_router/params.h"

namespace blockdraft {

enum class RouterStep { kProject, kRoute };

// Calls run<step>(groups) for each launch, where a group projects a tile of `rows` channels by
// `columns` tokens, and routes so many `routed` tokens.
template <class T, class Run>
void schedule(const ZayaRouterParams<T>& p, int rows, int columns, int routed, Run run) {
  const int64_t tiles = ceil_div(p.channels, rows) * ceil_div(p.rows, columns);
  run.template operator()<RouterStep::kProject>(tiles);
  run.template operator()<RouterStep::kRoute>(int64_t(ceil_div(p.rows, routed)));
}

}  // namespace blockdraft
