// Kernel body of sample_drafts: draws the next drafts from the drafter's logits. On a GPU each step
// of schedule.h is a launch.
#pragma once

#include "ops/sample_drafts/schedule.h"
#include "ops/sampling/workspace.h"

namespace blockdraft {

template <class Crew, class T>
class DraftRow {
 public:
  DraftRow(Crew& crew, const SampleParams<T>& params, int64_t row, const RowsMemory<T>& memory)
      : crew_(crew),
        params_(params),
        request_(int(row / params.drafts)),
        i_(int(row % params.drafts)),
        memory_(memory),
        partials_(memory.partials(0)),
        sampler_(crew, params.vocabulary(), memory.sums(0), memory.lists),
        sampling_(params.drafter_sampling.of(request_)) {
    peak_ = params.greedy || sampling_.temperature == 0;
    if (peak_) sampling_ = {1, 0, 1, 0};  // draft_lse is then the raw logits' normaliser
  }

  void run() { finish(); }

  template <SampleStep kStep>
  void step(int block) {
    if constexpr (kStep == SampleStep::kMeasure) measure(block);
    if constexpr (kStep == SampleStep::kCut) cut();
    if constexpr (kStep == SampleStep::kFinish) finish();
  }

 private:
  Logits<T> logits() const {
    return {params_.logits.at(request_, i_), nullptr, 1, words(params_.allowed, request_, i_),
            Penalties::of<typename Crew::Scan>(params_.penalties, request_, 0, memory_.touched)};
  }
  bool live() const { return i_ < params_.draft_len[request_]; }

  void measure(int block) {
    if (!live()) return;
    const typename Crew::Scan scan;
    const Partial partial = sampler_.measure_block(scan, logits(), sampling_, !peak_, block);
    if (scan.leader()) partials_[block] = partial;
  }

  void cut() {
    if (!live()) return;
    const Distribution<T> q = sampler_.distribution(logits(), sampling_, !peak_, partials_);
    if (crew_.leader()) memory_.state(0).distribution = q;
  }

  Distribution<T> distribution(const Logits<T>& own) {
    if constexpr (!Crew::kStaged)
      return sampler_.measured_distribution(own, sampling_, !peak_, partials_);
    if (params_.drafter_sampling.may_truncate()) return memory_.state(0).distribution;
    return sampler_.template distribution<false>(own, sampling_, !peak_, partials_);
  }

  void finish() {
    int token = -1;
    double lse[4] = {};
    if (live()) {
      const Logits<T> own = logits();
      const Distribution<T> q = distribution(own);
      if (q.status == kFine) {
        lse[0] = q.top;
        lse[1] = log2_double(q.sum) / kLog2e;
        lse[2] = q.cut;
        lse[3] = q.tie;
        token = peak_ ? argmax(own) : draw(q);
      }
    }
    if (!crew_.leader()) return;
    const auto& params = Crew::Scan::reload(&params_);  // lest it takes registers until here
    params.draft_tokens.at(request_)[i_] = token;
    double* const out = params.draft_lse.at(request_, i_);
    for (int j = 0; j < 4; ++j) out[j] = lse[j];
  }

  int argmax(const Logits<T>& own) {
    const Sampling greedy{0, 0, 1, 0};
    return sampler_.measured_distribution(own, greedy, false, partials_).point;
  }

  int draw(const Distribution<T>& q) {
    const auto& params = Crew::Scan::reload(&params_);
    const double u = params.uniforms
                         ? params.uniforms.at(request_)[i_]
                         : uniform(params.seed[request_], params.position[request_], i_, kDraft);
    const auto partials = sampler_.terms(partials_);
    const auto masses = sampler_.masses(q);
    const double sum = Crew::kStaged ? q.sum : partials.fold(0.0, sampler_.plus, masses);
    auto crossing = [&](const auto& scan, Span span, double r) {
      return sampler_.crossing_in(scan, q, span, r);
    };
    return sampler_.find(partials, u * sum, crossing, masses);
  }

  Crew& crew_;
  const SampleParams<T>& params_;
  int request_, i_;
  RowsMemory<T> memory_;
  Partial* partials_;
  Sampler<Crew, T> sampler_;
  Sampling sampling_;
  bool peak_;  // the draft is the argmax
};

}  // namespace blockdraft
