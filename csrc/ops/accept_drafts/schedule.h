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

// Whether rows are normalised by a launch of their own: for cuts and blends, which take readings of
// whole rows; and where so many crews draw that each should not do it.
template <class T>
bool normalises_apart(const AcceptParams<T>& p) {
  return p.target_sampling.may_truncate() || p.drafter_sampling.may_truncate() || p.mix ||
         p.rule == kBlock;
}

// The masses of a draw are those of halves of vocab_blocks, of which a crew weighs some.
constexpr int kHalvesOfCrew = 8;

template <class T>
Vocabulary halves(const AcceptParams<T>& p) {
  return {p.num_valid_vocab, p.mask_token, p.vocab_block / 2};
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
      return {p.rule == kBlock ? most(p.drafts, 1) : 1, ceil_div(halves(p).blocks, kHalvesOfCrew)};
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
