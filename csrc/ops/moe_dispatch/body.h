// Sorts pairs (row, choice) by expert: a stable counting sort by one group, of which each part
// counts and then places the pairs of rows that follow each other.
#pragma once

#include "ops/moe_dispatch/params.h"
#include "tile/group.h"

namespace blockdraft {

enum class DispatchStep { kDispatch };

// run<step>(groups) for each launch.
template <class Run>
void schedule(const DispatchParams&, Run run) {
  run.template operator()<DispatchStep::kDispatch>(1);
}

// The group's memory has this many counters: a row of them for each part, and one of sums. There
// are 2^shift parts, as many as it has room for.
constexpr int kDispatchCounts = 8192;
inline int dispatch_shift(int num_experts) {
  int shift = 6;
  while (shift > 0 && ((1 << shift) + 1) * num_experts > kDispatchCounts) --shift;
  return shift;
}

// `counts`: memory of the group.
template <class Group>
void dispatch(Group& group, const DispatchParams& p, int32_t* counts, int shift) {
  const int experts = p.num_experts, parts = 1 << shift;
  const int share = (p.rows + parts - 1) >> shift;
  int32_t* firsts = counts + parts * experts;  // where each expert's pairs begin
  auto each_pair = [&](int part, auto f) {
    for (int row = part * share; row < least(p.rows, (part + 1) * share); ++row)
      for (int choice = 0; choice < p.choices; ++choice) {
        const int expert = p.experts.at(row)[choice];
        if (expert >= 0) f(row * p.choices + choice, expert);
      }
  };
  group.each(parts, [&](int part) {
    int32_t* own = counts + part * experts;
    for (int e = 0; e < experts; ++e) own[e] = 0;
    each_pair(part, [&](int, int expert) { ++own[expert]; });
  });
  group.barrier();
  group.each(experts, [&](int expert) {
    int before = 0;  // pairs of this expert in the parts before
    for (int part = 0; part < parts; ++part) {
      int32_t& count = counts[part * experts + expert];
      const int own = count;
      count = before;
      before += own;
    }
    firsts[expert] = before;
  });
  group.barrier();
  if (group.leader()) {
    int first = 0;
    for (int e = 0; e < experts; ++e) {
      const int count = firsts[e];
      p.offsets[e] = firsts[e] = first;
      first += count;
    }
    p.offsets[experts] = first;
  }
  group.barrier();
  group.each(parts, [&](int part) {
    each_pair(part, [&](int pair, int expert) {
      p.order[firsts[expert] + counts[part * experts + expert]++] = pair;
    });
  });
  group.barrier();
  const int routed = p.offsets[experts];
  group.each(p.pairs() - routed, [&](int i) { p.order[routed + i] = -1; });
}

}  // namespace blockdraft
