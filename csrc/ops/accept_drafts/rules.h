// How many drafts are kept. A rule reads the drafts under test through an `Evidence` (Acceptance of
// body.h):
//
//   live()            how many there are
//   first(n, holds)   the least i < n for which it holds, or n: a CPU asks in order, a GPU at once
//   prepare(i)        makes the distributions of row i if they are missing
//   status(i)         of row i, once it is prepared
//   uniform_of(i)     the uniform random number that decides draft i
//   p(i), q(i)        probability of draft i in the target's and in the drafter's distribution of
//                     row i; NaN where that has a status
//   make_carries(n)   computes carry(i) for i < n, in ascending order
//   surplus(i, s)     the sum over ids of (s * p - q)+ in row i
#pragma once

#include "ops/sampling/workspace.h"

namespace blockdraft {

enum Rule { kToken = 0, kBlock = 1, kGreedy = 2 };  // blockdraft.ops.accept_drafts.RULES

// What is decided before the draw: the number of accepted drafts, and the factor of p in the
// residual.
struct Verdict {
  int accepted, status;
  double scale;
};

// Each draft is kept with probability min(1, p / q), up to the first that is not.
template <class Evidence>
Verdict decide_token(Evidence& evidence) {
  const int i = evidence.first(evidence.live() + 1, [&](int i) {
    evidence.prepare(i);
    return i == evidence.live() || !(evidence.uniform_of(i) * evidence.q(i) < evidence.p(i));
  });
  return {i, evidence.status(i), 1};
}

// The block rule's p_i (arXiv 2403.10444) from that of the draft before.
inline double next_carry(double carry, double ratio) {
  return carry > 0 ? least(carry * ratio, 1.0) : 0;
}

// The block rule keeps all drafts up to the last one of 0..end - 1 whose test succeeds, even if
// earlier tests fail. So the tests run from the last draft backwards up to the first success. A
// surplus that is no number counts as one: the draw meets it again.
template <class Evidence>
Verdict last_kept(Evidence& evidence, int end) {
  auto passes = [&](int i) {
    const double carry = evidence.carry(i), u = evidence.uniform_of(i);
    if (!(u < carry)) return false;  // h is at most as large
    if (i + 1 == evidence.live()) return true;
    const double surplus = evidence.surplus(i + 1, carry);
    return surplus != surplus || (surplus > 0 && u < surplus / (surplus + 1 - carry));
  };
  const int kept = end - evidence.first(end, [&](int test) { return passes(end - 1 - test); });
  return {kept, kFine, kept > 0 ? evidence.carry(kept - 1) : 1};
}

// Reads no row after a draft with p = 0, and the bonus row only if all drafts are kept.
template <class Evidence>
Verdict decide_block(Evidence& evidence) {
  const int end = evidence.first(evidence.live(), [&](int i) {
    evidence.prepare(i);
    return !(evidence.p(i) > 0) || evidence.q(i) != evidence.q(i);
  });
  if (end < evidence.live() && evidence.status(end) != kFine) return {0, evidence.status(end), 1};
  evidence.make_carries(end);
  Verdict verdict = last_kept(evidence, end);
  if (verdict.accepted == evidence.live()) {
    evidence.prepare(evidence.live());
    verdict.status = evidence.status(evidence.live());
  }
  return verdict;
}

template <class Evidence>
Verdict decide(Evidence& evidence, int rule) {
  return rule == kBlock ? decide_block(evidence) : decide_token(evidence);
}

}  // namespace blockdraft
