// How many drafts are kept. A rule reads the drafts under test through an `Evidence` (Acceptance of
// body.h):
//
//   live()            how many there are
//   prepare(i)        makes the distributions of row i if they are missing; returns its status
//   uniform_of(i)     the uniform random number that decides draft i
//   p(i), q(i)        probability of draft i in the target's and in the drafter's distribution of
//                     row i
//   surplus(i, s)     the sum over ids of (s * p - q)+ in row i
#pragma once

#include "ops/sampling/workspace.h"

namespace blockdraft {

enum Rule { kToken = 0, kBlock = 1, kGreedy = 2 };  // blockdraft.ops.accept_drafts.RULES

// Each draft is kept with probability min(1, p / q), up to the first that is not.
template <class Evidence>
Verdict decide_token(Evidence& evidence) {
  for (int i = 0;; ++i) {
    const int status = evidence.prepare(i);
    if (status != kFine || i == evidence.live()) return {i, status, 1};
    if (!(evidence.uniform_of(i) * evidence.q(i) < evidence.p(i))) return {i, kFine, 1};
  }
}

// The block rule's p_i (arXiv 2403.10444), of drafts 0..i.
template <class Evidence>
double block_carry(const Evidence& evidence, int i) {
  double carry = 1;
  for (int j = 0; j <= i && carry > 0; ++j) {
    const double p = evidence.p(j);
    carry = p > 0 ? least(carry * p / evidence.q(j), 1.0) : 0;
  }
  return carry;
}

// The block rule keeps all drafts up to the last one of 0..end - 1 whose test succeeds, even if
// earlier tests fail. So the tests run from the last draft backwards and stop at the first success.
template <class Evidence>
Verdict last_kept(Evidence& evidence, int end) {
  Verdict verdict{0, kFine, 1};
  for (int i = end - 1; i >= 0 && verdict.status == kFine; --i) {
    const double carry = block_carry(evidence, i);
    const double u = evidence.uniform_of(i);
    if (!(u < carry)) continue;  // h is at most as large
    double h = carry;
    if (i + 1 < evidence.live()) {
      const double surplus = evidence.surplus(i + 1, carry);
      if (surplus != surplus) verdict.status = kNotNumbers;  // the caller gave q's normaliser
      h = surplus > 0 ? surplus / (surplus + 1 - carry) : 0;
    }
    if (u < h) return {i + 1, verdict.status, carry};
  }
  return verdict;
}

// Reads no row after a draft with p = 0, and the bonus row only if all drafts are kept.
template <class Evidence>
Verdict decide_block(Evidence& evidence) {
  int end = 0;
  int status = kFine;
  while (end < evidence.live() && (status = evidence.prepare(end)) == kFine && evidence.p(end) > 0)
    ++end;
  if (status != kFine) return {0, status, 1};
  Verdict verdict = last_kept(evidence, end);
  if (verdict.accepted == evidence.live()) verdict.status = evidence.prepare(evidence.live());
  return verdict;
}

template <class Evidence>
Verdict decide(Evidence& evidence, int rule) {
  return rule == kBlock ? decide_block(evidence) : decide_token(evidence);
}

}  // namespace blockdraft
