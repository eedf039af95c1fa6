// Top-k, then top-p of what top-k kept. Ids rank by logit; of equal logits the lower id ranks
// first.
#pragma once

#include "ops/sampling/distribution.h"

namespace blockdraft {

// Maps floats to integers of the same order; -0 counts as 0.
inline uint32_t image(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x == 0 ? 0.0f : x);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
inline float number(uint32_t image) {
  return __builtin_bit_cast(float, image >> 31 ? image & 0x7fffffffu : ~image);
}

// Truncates the distribution p in place.
template <class Sampler, class T>
class Truncation {
 public:
  Truncation(Sampler& sampler, Distribution<T>& p) : sampler_(sampler), p_(p) {}

  // Keeps an id if the mass (or the number) of the ids that rank before it is below `limit`. The
  // logit of the last kept id is found by bisection.
  void keep(double limit, bool by_mass) {
    double before = above(p_.cut, by_mass);
    uint32_t low = image(p_.cut);
    uint32_t high = before < limit ? low : image(__builtin_inff());
    while (high - low > 1) {  // above(low) >= limit > above(high)
      const uint32_t middle = low + (high - low) / 2;
      const double mass = above(number(middle), by_mass);
      if (mass < limit) {
        high = middle;
        before = mass;
      } else {
        low = middle;
      }
    }
    const float cut = number(high);
    if (cut == -__builtin_inff()) return;
    const double each = exp2_double((double(cut) - p_.top) * p_.scale);
    const double fit = by_mass ? (each > 0 ? (limit - before) / each : kManyTies) : limit - before;
    const double same = sampler_.weigh(
        [&](const auto& scan, int, Span span) { return count_equal(scan, p_, cut, span); });
    const double ties = least(same, __builtin_ceil(least(fit, kManyTies)));
    if (cut != p_.cut) p_.tie = INT32_MAX;  // `tie` belonged to the previous cut
    p_.cut = cut;
    if (ties < same)
      p_.tie = sampler_.find(ties - 0.5, [&](const auto& scan, Span span, double r) {
        return scan.crossing(span, equals(p_, cut), r);
      });
    p_.sum = above(cut, true) + ties * each;
  }

 private:
  static constexpr double kManyTies = 1e9;

  // The mass, or the number, of the kept ids with a logit above x.
  double above(float x, bool by_mass) {
    return sampler_.weigh([&](const auto& scan, int, Span span) {
      return by_mass ? mass_above(scan, p_, x, span) : count_above(scan, p_, x, span);
    });
  }
  template <class Scan>
  BLOCKDRAFT_SCAN static double mass_above(const Scan& scan, const Distribution<T>& p, float x,
                                           Span span) {
    auto mass = [&p, x](auto at, auto&) {
      const auto weight = p.template weight<false>(at);
      return at.select(p.logits.load(at) > at.all(x), weight, at.all(0.0f));
    };
    return scan.sum(span, mass).sum;
  }
  template <class Scan>
  BLOCKDRAFT_SCAN static double count_above(const Scan& scan, const Distribution<T>& p, float x,
                                            Span span) {
    auto one = [&p, x](auto at, auto&) {
      return at.select(p.logits.load(at) > at.all(x), at.all(1.0f), at.all(0.0f));
    };
    return scan.sum(span, one).sum;
  }
  template <class Scan>
  BLOCKDRAFT_SCAN static double count_equal(const Scan& scan, const Distribution<T>& p, float x,
                                            Span span) {
    return scan.sum(span, equals(p, x)).sum;
  }
  static auto equals(const Distribution<T>& p, float x) {  // of kept ids
    return [&p, x, last = x == p.cut ? p.tie : INT32_MAX](auto at, auto&) {
      const auto kept = (p.logits.load(at) == at.all(x)) & (at.template id<T>() <= at.all(last));
      return at.select(kept, at.all(1.0f), at.all(0.0f));
    };
  }

  Sampler& sampler_;
  Distribution<T>& p_;
};

template <class Sampler, class T>
void truncate(Sampler& sampler, Distribution<T>& p, const Sampling& sampling) {
  Truncation<Sampler, T> truncation(sampler, p);
  if (sampling.top_k > 0 && sampling.top_k < sampler.vocabulary().size)
    truncation.keep(sampling.top_k, false);
  if (sampling.top_p < 1) truncation.keep(sampling.top_p * p.sum, true);
}

}  // namespace blockdraft
