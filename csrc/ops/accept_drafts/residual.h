// The residual (scale * p - q)+ of a rejected draft's row, as weights without the factor
// scale / p.sum.
#pragma once

#include "ops/sampling/split.h"

namespace blockdraft {

// Weights (p - ratio * q)+; if q is a point, the weights of p without that id. Where p equals q the
// weight must be exactly 0, whether or not the compiler fuses the product with the difference.
template <class At, class Float>
Float residual_weight(At at, Float of_p, Float of_q, float ratio, bool infinite) {
  const Float rest = at.maximum(at.all(0.0f), of_p - of_q * at.all(ratio));
  return infinite ? at.select(of_q == at.all(0.0f), of_p, rest) : rest;  // 0 * infinity is NaN
}

template <class T>
float residual_ratio(const Distribution<T>& p, const Distribution<T>& q, double scale) {
  return float(p.sum / q.sum / scale);
}

template <Kind kKind, class T>
auto residual(const Distribution<T>& p, const Distribution<T>& q, double scale) {
  const float ratio = residual_ratio(p, q, scale);
  return [&p, &q, ratio, infinite = !(ratio < __builtin_inff())](auto at, auto&) {
    const auto of_p = p.template weight<kKind>(at);
    if constexpr (kKind == Kind::kAny)
      if (q.point != Distribution<T>::kSpread)
        return at.select(at.template id<T>() == at.all(q.point), at.all(0.0f), of_p);
    const auto of_q = q.template weight<kKind>(at);
    return residual_weight(at, of_p, of_q, ratio, infinite);
  };
}

template <class Scan, class T>
double residual_mass(const Scan& scan, const Distribution<T>& p, const Distribution<T>& q,
                     double scale, Span span);

// Of simple distributions.
template <Kind kKind, class Scan, class T>
double simple_residual_mass(const Scan& scan, const Distribution<T>& p, const Distribution<T>& q,
                            double scale, Span span) {
  Distribution<T> open = p;
  open.logits.allowed = nullptr;
  const auto weight = residual<kKind>(open, q, scale);
  if (!p.logits.allowed) return scan.sum(span, weight).sum;
  return scan.template sum_kept<T>(span, p.logits.allowed, [&](auto at) {
    auto peak = at.all(0.0f);
    return weight(at, peak);
  });
}

// Faster than `residual` of any kind, where all logits are of one row or most of them are.
template <class Scan, class T>
double split_residual_mass(const Scan& scan, const Distribution<T>& p, const Distribution<T>& q,
                           double scale, Span span) {
  if (p.simple() && q.simple()) {
    if (p.truncated() || q.truncated())
      return simple_residual_mass<Kind::kCut>(scan, p, q, scale, span);
    return q.logits.allowed ? simple_residual_mass<Kind::kSimple>(scan, p, q, scale, span)
                            : simple_residual_mass<Kind::kPlain>(scan, p, q, scale, span);
  }
  if (p.logits.penalties.touched && !p.logits.other && !q.logits.other && p.kept_by_logit() &&
      q.kept_by_logit()) {
    Split split(p.logits.penalties, span);
    if (split.fits()) {
      float values[2][Split::kRoom];
      // What is not in p's part counts in neither.
      const Logits<T> of_q{q.logits.row, nullptr, 1, q.logits.allowed};
      const double rest =
          residual_mass(scan, p.over(split.rest(p.logits)), q.over(of_q), scale, span);
      return rest + residual_mass(scan, p.over(split.list(scan, p.logits, values[0])),
                                  q.over(split.list(scan, q.logits, values[1])), scale,
                                  split.listed());
    }
  }
  return scan.sum(span, residual<Kind::kAny>(p, q, scale)).sum;
}

// Of single rows that are not cut, or if `kCut` of such whose ids are kept by their logits.
template <bool kCut, class Scan, class T>
double held_residual_mass(const Scan& scan, const Distribution<T>& p, const Distribution<T>& q,
                          double scale, Span span) {
  const float ratio = residual_ratio(p, q, scale);
  auto weight = [](auto at, auto x, const Distribution<T>& own, float least) {
    const auto all = own.weight_of(at, x);
    return kCut ? at.select(x >= at.all(least), all, at.all(0.0f)) : all;
  };
  auto rest = [weight, p, q, ratio, infinite = !(ratio < __builtin_inff()),
               least_of_p = p.least_kept(), least_of_q = q.least_kept()](auto at, auto x, auto y) {
    return residual_weight(at, weight(at, x, p, least_of_p), weight(at, y, q, least_of_q), ratio,
                           infinite);
  };
  return scan.rows_sum(span, rest, p.logits.row, q.logits.row);
}

template <class Scan, class T>
BLOCKDRAFT_SCAN double residual_mass(const Scan& scan, const Distribution<T>& p,
                                     const Distribution<T>& q, double scale, Span span) {
  if (q.point == Distribution<T>::kSpread) {
    if (p.plain() && q.plain()) {
      if constexpr (Scan::kHeld > 0) return held_residual_mass<false>(scan, p, q, scale, span);
      return scan.sum(span, residual<Kind::kPlain>(p, q, scale)).sum;
    }
    if constexpr (Scan::kHeld > 0)
      if (p.logits.plain() && q.logits.plain()) {
        const Distribution<T> of_p = p.within(span), of_q = q.within(span);
        if (of_p.kept_by_logit() && of_q.kept_by_logit())
          return held_residual_mass<true>(scan, of_p, of_q, scale, span);
      }
    if constexpr (Scan::kSplits)
      return split_residual_mass(scan, p.within(span), q.within(span), scale, span);
  }
  return scan.sum(span, residual<Kind::kAny>(p, q, scale)).sum;
}

// The id at which the running sum of the weights exceeds r.
template <class Scan, class T>
BLOCKDRAFT_SCAN int residual_crossing(const Scan& scan, const Distribution<T>& p,
                                      const Distribution<T>& q, double scale, Span span, double r) {
  if constexpr (Scan::kHeld > 0)
    if (q.point == Distribution<T>::kSpread && p.plain() && q.plain()) {
      const Distribution<T> of_p = p, of_q = q;  // in registers
      const auto plain = residual<Kind::kPlain>(of_p, of_q, scale);
      return scan.crossing(span, plain, r);
    }
  const auto any = residual<Kind::kAny>(p, q, scale);
  return scan.crossing(span, any, r);
}

}  // namespace blockdraft
