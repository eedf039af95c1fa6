// The next drafts from the drafter's logits: the kernel body. On a GPU the steps are launches of
// their own: measure (each block of each row), finish (each row).
#pragma once

#include "sampling.h"

namespace blockdraft {

template <class T>
struct SampleParams {
  const T* logits;                     // [batch][drafts][vocab]
  int64_t logits_request, logits_row;  // strides in elements
  const int32_t *draft_len, *position;
  const int64_t* seed;
  const double* uniforms;  // [batch][drafts] or null
  int64_t uniforms_row;
  SamplingParams sampling;
  int32_t* tokens;                                // [batch][drafts]
  float* lse;                                     // [batch][drafts]
  double* workspace;                              // sample_doubles of each row; only of a GPU
  int batch, drafts, valid, mask_token, threads;  // threads: of a CPU
  bool greedy;

  template <class F>
  void each_pointer(F f) {
    f(logits), f(draft_len), f(position), f(seed), f(uniforms), sampling.each_pointer(f), f(tokens),
        f(lse), f(workspace);
  }
};

// Doubles of workspace that a row has on a GPU: its blocks' partials and sums.
// blockdraft.ops.sample_drafts knows it too.
inline int64_t sample_doubles(int blocks) { return 3 * int64_t(blocks); }

template <class Crew, class T>
class DraftRow {
 public:
  DraftRow(Crew& crew, const SampleParams<T>& params, int64_t row, Partial* partials)
      : crew_(crew),
        p_(params),
        b_(int(row / params.drafts)),
        i_(int(row % params.drafts)),
        partials_(partials),
        vocabulary_(params.valid, params.mask_token),
        sampler_(crew, vocabulary_),
        shaping_(params.sampling.of(b_)),
        logits_{params.logits + b_ * params.logits_request + i_ * params.logits_row, nullptr, 1} {
    // an argmax leaves the normaliser of the raw logits
    peak_ = p_.greedy || shaping_.temperature == 0;
    if (peak_) shaping_ = {1, 0, 1};
  }

  void run() {
    if (live()) sampler_.measure_row(logits_, shaping_, !peak_, partials_);
    finish();
  }

  void measure(int block) {
    if (!live()) return;
    const typename Crew::Scan scan;
    const Partial partial = sampler_.measure_block(scan, logits_, shaping_, !peak_, block);
    if (scan.leader()) partials_[block] = partial;
  }

  void finish() {
    int token = -1;
    float lse = 0;
    if (live()) {
      Law<T> law = sampler_.law(logits_, shaping_, partials_);
      if (law.status == kFine) {
        lse = float((law.top * law.scale + log2_double(law.sum)) / kLog2e);
        token = peak_ ? argmax() : draw(law);
      }
    }
    if (!crew_.leader()) return;
    p_.tokens[b_ * p_.drafts + i_] = token;
    p_.lse[b_ * p_.drafts + i_] = lse;
  }

 private:
  bool live() const { return i_ < p_.draft_len[b_]; }

  int argmax() {
    const Shaping greedy{0, 0, 1};
    sampler_.measure_row(logits_, greedy, false, partials_);
    return sampler_.law(logits_, greedy, partials_).point;
  }

  int draw(const Law<T>& law) {
    const double u = p_.uniforms ? p_.uniforms[b_ * p_.uniforms_row + i_]
                                 : uniform(p_.seed[b_], p_.position[b_], i_, kDraft);
    const double total = sampler_.weigh([&](const auto& scan, int block, Span span) {
      return law.truncated() ? sampler_.law_mass(scan, law, span)
                             : sampler_.mass(law, partials_[block]);
    });
    return sampler_.find(u * total, [&](const auto& scan, Span span, double r) {
      return sampler_.law_crossing(scan, law, span, r);
    });
  }

  Crew& crew_;
  const SampleParams<T>& p_;
  int b_, i_;
  Partial* partials_;
  Vocabulary vocabulary_;
  Sampler<Crew, T> sampler_;
  Shaping shaping_;
  Logits<T> logits_;
  bool peak_;
};

}  // namespace blockdraft
