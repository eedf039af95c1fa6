// The launches of sample_drafts where its steps are launches of their own.
#pragma once

#include "ops/sample_drafts/params.h"

namespace blockdraft {

enum class SampleStep {
  kMeasure,  // a vocab_block of a row: what it adds to the row's normaliser
  kFinish,   // a row: its distribution and the draw
};

// run<step>(groups) for each launch. Groups are numbered row, vocab_block, the last the fastest.
template <class T, class Run>
void schedule(const SampleParams<T>& p, Run run) {
  const int64_t rows = int64_t(p.batch) * p.drafts;
  run.template operator()<SampleStep::kMeasure>(rows * p.vocabulary().blocks);
  run.template operator()<SampleStep::kFinish>(rows);
}

}  // namespace blockdraft
