// The launches of accept_drafts on a GPU, one for each step. Rows 0..drafts are the target's; the
// drafter's follow.
#pragma once

#include "ops/accept_drafts/params.h"

namespace blockdraft {

enum class AcceptStep {
  kMeasure,    // a vocab_block of a row: what it adds to the row's normaliser
  kNormalise,  // a row: its distribution
  kDraw,       // some vocab_blocks of a row: their mass in the distribution that the token is drawn
               // from; then, by the last crew of a request: all outputs except
  kLogprob,    // a row: the log-probability of its committed token
  kDrawAlone,  // kDraw without kNormalise: each crew normalises all rows
};

// Whether a workgroup keeps the states of a request's rows in memory of its own, of so many drafts.
constexpr bool rows_within(AcceptStep step) { return step == AcceptStep::kDrawAlone; }
constexpr int kDraftsWithin = 31;
template <class T>
constexpr int own_bytes(AcceptStep step) {
  return rows_within(step) ? (2 * kDraftsWithin + 1) * int(sizeof(RowState<T>)) : 1;
}

// Whether rows are normalised by a launch of their own: for cuts and blends, which take readings of
// whole rows; and where logits are masked or penalised or drafts are many, which a kernel that does
// all at once would take registers and memory for.
template <class T>
bool normalises_apart(const AcceptParams<T>& p) {
  return p.target_sampling.may_truncate() || p.drafter_sampling.may_truncate() || p.mix ||
         p.allowed || p.draft_allowed || p.penalties.touched || p.rule == kBlock ||
         p.drafts > kDraftsWithin;
}

// How many vocab_blocks a crew weighs for a draw: so few that each of the crews that a GPU runs at
// once has some.
constexpr int kCrewsAtOnce = 512;

template <class T>
int blocks_of_crew(const AcceptParams<T>& p) {
  return int(most<int64_t>(int64_t(p.batch) * p.vocabulary().blocks / kCrewsAtOnce, 1));
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
  switch (step) {
    case AcceptStep::kMeasure:
      return {2 * p.drafts + 1, p.vocabulary().blocks};
    case AcceptStep::kNormalise:
      return {2 * p.drafts + 1, 1};
    case AcceptStep::kDraw:
    case AcceptStep::kDrawAlone:  // the block rule needs the masses before it decides on a row
      return {p.rule == kBlock ? most(p.drafts, 1) : 1,
              ceil_div(p.vocabulary().blocks, blocks_of_crew(p))};
    case AcceptStep::kLogprob:
      return {p.drafts + 1, 1};
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
  if (normalises_apart(p)) {
    launch.template operator()<AcceptStep::kNormalise>();
    launch.template operator()<AcceptStep::kDraw>();
  } else {
    launch.template operator()<AcceptStep::kDrawAlone>();
  }
  if (p.target_logprob) launch.template operator()<AcceptStep::kLogprob>();
}

}  // namespace blockdraft
