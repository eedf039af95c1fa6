// The residual (scale * p - q)+ of a rejected draft's row, as weights without the factor
// scale / p.sum.
#pragma once

#include "ops/sampling/distribution.h"

namespace blockdraft {

// Weights (p - ratio * q)+; if q is a point, the weights of p without that id. Where p equals q the
// weight must be exactly 0, whether or not the compiler fuses the product with the difference.
template <bool kPlain, class T>
auto residual(const Distribution<T>& p, const Distribution<T>& q, double scale) {
  const float ratio = float(p.sum / q.sum / scale);
  return [&p, &q, ratio, infinite = !(ratio < __builtin_inff())](auto at, auto&) {
    const auto of_p = p.template weight<kPlain>(at);
    if constexpr (!kPlain)
      if (q.point != Distribution<T>::kSpread)
        return at.select(at.template id<T>() == at.all(q.point), at.all(0.0f), of_p);
    const auto of_q = q.template weight<kPlain>(at);
    const auto rest = at.maximum(at.all(0.0f), of_p - of_q * at.all(ratio));
    return infinite ? at.select(of_q == at.all(0.0f), of_p, rest) : rest;  // 0 * infinity is NaN
  };
}

template <class Scan, class T>
BLOCKDRAFT_SCAN double residual_mass(const Scan& scan, const Distribution<T>& p,
                                     const Distribution<T>& q, double scale, Span span) {
  if (p.plain() && q.plain() && q.point == Distribution<T>::kSpread)
    return scan.sum(span, residual<true>(p, q, scale)).sum;
  return scan.sum(span, residual<false>(p, q, scale)).sum;
}

// The id at which the running sum of the weights exceeds r.
template <class Scan, class T>
BLOCKDRAFT_SCAN int residual_crossing(const Scan& scan, const Distribution<T>& p,
                                      const Distribution<T>& q, double scale, Span span, double r) {
  return scan.crossing(span, residual<false>(p, q, scale), r);
}

}  // namespace blockdraft
