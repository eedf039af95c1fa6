// The launches of sample_drafts on a GPU, one for each step.
#pragma once

#include "ops/sample_drafts/params.h"

namespace blockdraft {

enum class SampleStep {
  kMeasure,  // a vocab_block of a row: what it adds to the row's normaliser
  kCut,      // a row: its distribution, where rows may be cut
  kFinish,   // a row: the draw
};

// Calls run<step>(groups) for each launch. Groups are numbered by row and vocab_block, the latter
// fastest.
template <class T, class Run>
void schedule(const SampleParams<T>& p, Run run) {
  const int64_t rows = int64_t(p.batch) * p.drafts;
  run.template operator()<SampleStep::kMeasure>(rows * p.vocabulary().blocks);
  if (p.drafter_sampling.may_truncate()) run.template operator()<SampleStep::kCut>(rows);
  run.template operator()<SampleStep::kFinish>(rows);
}

}  // namespace blockdraft
