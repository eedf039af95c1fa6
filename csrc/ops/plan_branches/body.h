// Kernel body of plan_branches, on the tile layer: dynamic programming over the levels on which a
// pass may end. A pass that accepts a drafts ends on level a, counted from 0; branch c + 1 begins
// on level c and serves the levels from there to where the next branch begins.
#pragma once

#include "ops/plan_branches/params.h"
#include "tile/group.h"

namespace blockdraft {

enum class PlanStep { kPlan };

// Calls run<step>(groups) for each launch.
template <class T, class Run>
void schedule(const PlanParams<T>& p, Run run) {
  run.template operator()<PlanStep::kPlan>(p.batch);
}

// A group's.
struct PlanMemory {
  double weight[kPlanLevels];  // the probability that the pass ends on a level
  // Expected drafts of the next pass, by how many levels a branch begins before this pass ends.
  double gain[kPlanLevels];
  // Of the levels from one on, by the best branches so far and in the round before: their value, and
  // the levels on which branches begin, as bits. Behind the last level both are 0.
  double value[2][kPlanLevels + 1];
  uint64_t chosen[2][kPlanLevels + 1];
};

// One group plans a request: each round allows one more branch.
template <class Group, class T>
void plan_branches(Group& group, const PlanParams<T>& p, PlanMemory& memory, int request) {
  const int levels = p.levels(), drafts = p.draft_len[request];
  const int rounds = least(p.proposals, levels);
  const T* accept = p.accept.at(request);
  auto accepted = [&](int draft) { return draft < drafts ? double(accept[draft]) : 0.0; };
  group.each(levels, [&](int level) {
    double reached = 1, run = 1, gain = 0;
    for (int draft = 0; draft < level; ++draft) reached *= accepted(draft);
    for (int draft = 0; draft < p.drafts && level + 1 + draft < p.masks; ++draft) {
      run *= double(p.mask_accept.at(draft)[level + 1 + draft]);
      gain += run;
    }
    memory.weight[level] = reached * (1 - accepted(level));
    memory.gain[level] = gain;
  });
  group.each(levels + 1, [&](int level) {
    for (int i = 0; i < 2; ++i) {
      memory.value[i][level] = level < levels ? -__builtin_inf() : 0;
      memory.chosen[i][level] = 0;
    }
  });
  group.barrier();
  for (int round = 0; round < rounds; ++round) {
    const double* before = memory.value[round % 2];
    double* after = memory.value[1 - round % 2];
    group.each(levels, [&](int first) {
      double own = 0, best = -__builtin_inf();
      int next = levels;
      for (int stop = first + 1; stop <= levels && first <= drafts; ++stop) {
        own += memory.gain[stop - 1 - first] * memory.weight[stop - 1];
        if (own + before[stop] >= best) {  // of equal ones the last, with the fewest branches
          best = own + before[stop];
          next = stop;
        }
      }
      after[first] = best;
      memory.chosen[1 - round % 2][first] = memory.chosen[round % 2][next] | uint64_t(1) << first;
    });
    group.barrier();
  }
  if (!group.leader()) return;
  const double* value = memory.value[rounds % 2];
  int first = levels;
  for (int level = 0; level < levels; ++level)
    if (value[level] > 0 && (first == levels || value[level] >= value[first])) first = level;
  uint64_t chosen = memory.chosen[rounds % 2][first];
  int32_t* branch = p.branch.at(request);
  for (int i = 0; i < p.proposals; ++i, chosen &= chosen - 1)
    branch[i] = chosen ? __builtin_ctzll(chosen) + 1 : -1;
}

}  // namespace blockdraft
