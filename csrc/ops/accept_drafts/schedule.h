// The launches of accept_drafts on a GPU, one for each step. Rows 0..drafts are the target's; the
// drafter's follow.
#pragma once

#include "ops/accept_drafts/params.h"

namespace blockdraft {

enum class AcceptStep {
  kMeasure,    // a vocab_block of a row: what it adds to the row's normaliser
  kNormalise,  // a row: its distribution
  kSurplus,    // a vocab_block of a row: what it adds to the sum of (scale * p - q)+
  kDecide,     // a request: how many drafts are kept
  kWeigh,      // a vocab_block: its mass in the distribution that the token is drawn from
  kFinish,     // a request: the draw, and all outputs except
  kLogprob,    // a row: the log-probability of its committed token
};

// Whether one wave does a group of the step; otherwise the waves of a crew share it.
constexpr bool by_scans(AcceptStep step) {
  return step == AcceptStep::kMeasure || step == AcceptStep::kSurplus ||
         step == AcceptStep::kDecide || step == AcceptStep::kWeigh;
}

// The groups of a step are numbered by request, row and vocab_block, the last one fastest.
struct AcceptGrid {
  int rows, blocks;

  int request(int64_t group) const { return int(group / blocks / rows); }
  int row(int64_t group) const { return int(group / blocks % rows); }
  int block(int64_t group) const { return int(group % blocks); }
};

template <class T>
constexpr AcceptGrid accept_grid(const AcceptParams<T>& p, AcceptStep step) {
  const int blocks = p.vocabulary().blocks;
  switch (step) {
    case AcceptStep::kMeasure:
      return {2 * p.drafts + 1, blocks};
    case AcceptStep::kNormalise:
      return {2 * p.drafts + 1, 1};
    case AcceptStep::kSurplus:
      return {p.drafts, blocks};
    case AcceptStep::kWeigh:
      return {1, blocks};
    case AcceptStep::kLogprob:
      return {p.drafts + 1, 1};
    case AcceptStep::kDecide:
    case AcceptStep::kFinish:
      return {1, 1};
  }
  __builtin_unreachable();
}

// Calls run<step>(groups) for each launch.
template <class T, class Run>
void schedule(const AcceptParams<T>& p, Run run) {
  auto launch = [&]<AcceptStep kStep>() {
    const AcceptGrid grid = accept_grid(p, kStep);
    run.template operator()<kStep>(int64_t(p.batch) * grid.rows * grid.blocks);
  };
  launch.template operator()<AcceptStep::kMeasure>();
  launch.template operator()<AcceptStep::kNormalise>();
  if (p.rule == kBlock && p.drafts > 1) launch.template operator()<AcceptStep::kSurplus>();
  launch.template operator()<AcceptStep::kDecide>();
  launch.template operator()<AcceptStep::kWeigh>();
  launch.template operator()<AcceptStep::kFinish>();
  if (p.target_logprob) launch.template operator()<AcceptStep::kLogprob>();
}

}  // namespace blockdraft
