// What a crew (tile/scan.h) does with a row of logits, for both samplers: its law, and a draw by
// inverse CDF over ascending ids.
#pragma once

#include "law.h"
#include "philox.h"

namespace blockdraft {

struct SamplingParams {
  const float* temperature;
  const int32_t* top_k;  // null: off
  const float* top_p;    // null: off

  Shaping of(int request) const {
    const float t = temperature[request];
    return {t > 0 ? t : 0.0, top_k ? top_k[request] : 0, top_p ? top_p[request] : 1.0};
  }
  template <class F>
  void each_pointer(F f) {
    f(temperature), f(top_k), f(top_p);
  }
};

template <class Crew, class T>
class Sampler {
 public:
  Sampler(Crew& crew, const Vocabulary& vocabulary) : crew_(crew), vocabulary_(vocabulary) {}

  // What the blocks of a row add to its law. With temperature 0, the greatest logits. `drawn`: see
  // measure.
  void measure_row(const Logits<T>& logits, const Shaping& shaping, bool drawn, Partial* partials) {
    const Partial head = survey(typename Crew::Scan(), logits, blockdraft::head(vocabulary_));
    crew_.each_block(vocabulary_, [&](const auto& scan, int block, Span span) {
      const Partial partial = measure_block(scan, logits, shaping, drawn, head, span);
      if (scan.leader()) partials[block] = partial;
    });
  }

  Partial measure_block(const typename Crew::Scan& scan, const Logits<T>& logits,
                        const Shaping& shaping, bool drawn, int block) const {
    return measure_block(scan, logits, shaping, drawn, survey(scan, logits, head(vocabulary_)),
                         vocabulary_.span(block));
  }

  Law<T> law(const Logits<T>& logits, const Shaping& shaping, const Partial* partials) {
    Law<T> law{logits,          1,     0, -__builtin_inff(), -__builtin_inff(), INT32_MAX,
               Law<T>::kSpread, kEmpty};
    for (int i = 0; i < vocabulary_.blocks; ++i) {
      if (partials[i].status == kNotNumbers) law.status = kNotNumbers;
      if (partials[i].status == kFine && law.status == kEmpty) law.status = kFine;
      law.top = most(law.top, partials[i].anchor);
    }
    if (law.status != kFine) return law;
    if (shaping.temperature > 0) {
      law.scale = shaping.scale();
      for (int i = 0; i < vocabulary_.blocks; ++i) law.sum += mass(law, partials[i]);
      if (shaping.truncates()) truncate(law, shaping);
    } else {
      law.point = lowest(law, partials);
    }
    return law;
  }

  // The law of a row whose normaliser is known; untruncated.
  static Law<T> known_law(const Logits<T>& logits, const Shaping& shaping, float lse) {
    const double natural = lse * shaping.temperature;
    const float top = float(natural);
    return {logits,
            shaping.scale(),
            exp2_double((natural - top) * shaping.scale()),
            top,
            -__builtin_inff(),
            INT32_MAX,
            Law<T>::kSpread,
            kFine};
  }

  int row_status(const Logits<T>& logits) {
    double* sums = crew_.sums();
    crew_.each_block(vocabulary_, [&](const auto& scan, int block, Span span) {
      const Partial partial = survey(scan, logits, span);
      if (scan.leader()) sums[block] = partial.status;
    });
    int status = kEmpty;
    for (int i = 0; i < vocabulary_.blocks; ++i) {
      if (int(sums[i]) == kNotNumbers) return kNotNumbers;
      if (int(sums[i]) == kFine) status = kFine;
    }
    return status;
  }

  // sums[block] = f(scan, block, span); returns their sum.
  template <class F>
  double weigh(F f) {
    double* sums = crew_.sums();
    crew_.each_block(vocabulary_, [&](const auto& scan, int block, Span span) {
      const double sum = f(scan, block, span);
      if (scan.leader()) sums[block] = sum;
    });
    return total();
  }

  double total() const {
    double total = 0;
    for (int i = 0; i < vocabulary_.blocks; ++i) total += crew_.sums()[i];
    return total;
  }

  // The first id at which the running sum over weighed blocks exceeds r; crossing(scan, span, r)
  // finds it in one.
  template <class F>
  int find(double r, F crossing) const {
    const double* sums = crew_.sums();
    int block = 0, last = -1;
    for (; block < vocabulary_.blocks; ++block) {
      if (sums[block] > 0) last = block;
      if (sums[block] > r) break;
      r -= sums[block];
    }
    if (block == vocabulary_.blocks) r = __builtin_inf();  // by rounding
    if (last < 0) return -1;
    return crew_.within(vocabulary_, last,
                        [&](const auto& scan, Span span) { return crossing(scan, span, r); });
  }

  // What a measured block weighs in its row's law, which is not truncated.
  static double mass(const Law<T>& law, const Partial& partial) {
    if (!(partial.sum > 0)) return 0;
    return partial.anchor == law.top
               ? partial.sum
               : partial.sum * exp2_double((double(partial.anchor) - law.top) * law.scale);
  }
  template <class Scan>
  BLOCKDRAFT_SCAN static double law_mass(const Scan& scan, const Law<T>& law, Span span) {
    if (law.plain())
      return scan.sum(span, [&law](auto at, auto&) { return law.template weight<true>(at); }).sum;
    return scan.sum(span, [&law](auto at, auto&) { return law.template weight<false>(at); }).sum;
  }
  template <class Scan>
  BLOCKDRAFT_SCAN static int law_crossing(const Scan& scan, const Law<T>& law, Span span,
                                          double r) {
    return scan.crossing(
        span, [&law](auto at, auto&) { return law.template weight<false>(at); }, r);
  }

 private:
  template <class Scan>
  static Partial measure_block(const Scan& scan, const Logits<T>& logits, const Shaping& shaping,
                               bool drawn, const Partial& head, Span span) {
    return shaping.temperature > 0 ? measure(scan, logits, shaping.scale(), head, span, drawn)
                                   : survey(scan, logits, span);
  }

  // The lowest id with the greatest logit, of surveyed blocks.
  int lowest(const Law<T>& law, const Partial* partials) const {
    int block = 0;
    while (partials[block].anchor != law.top) ++block;
    return crew_.within(vocabulary_, block,
                        [&](const auto& scan, Span span) { return first_equal(scan, law, span); });
  }
  template <class Scan>
  BLOCKDRAFT_SCAN static int first_equal(const Scan& scan, const Law<T>& law, Span span) {
    return scan.crossing(
        span,
        [&law](auto at, auto&) {
          return at.select(law.logits.load(at) == at.all(law.top), at.all(1.0f), at.all(0.0f));
        },
        0.5);
  }

  // Top-k, then top-p of what it kept. Rank by logit, then by lower id.
  void truncate(Law<T>& law, const Shaping& shaping) {
    if (shaping.top_k > 0 && shaping.top_k < vocabulary_.size) keep(law, shaping.top_k, false);
    if (shaping.top_p < 1) keep(law, shaping.top_p * law.sum, true);
  }

  // Keeps ids in rank order as long as the measure (mass, or their number) of those before is below
  // `limit`.
  void keep(Law<T>& law, double limit, bool by_mass) {
    double before = above(law, law.cut, by_mass);
    uint32_t low = image(law.cut), high = low;
    if (!(before < limit)) high = image(__builtin_inff());
    while (high - low > 1) {  // above(low) is at least the limit, above(high) is not
      const uint32_t middle = low + (high - low) / 2;
      const double mass = above(law, number(middle), by_mass);
      if (mass < limit)
        high = middle, before = mass;
      else
        low = middle;
    }
    const float cut = number(high);
    if (cut == -__builtin_inff()) return;
    const double each = exp2_double((double(cut) - law.top) * law.scale);
    const double fit = by_mass ? (each > 0 ? (limit - before) / each : kManyTies) : limit - before;
    const double same =
        weigh([&](const auto& scan, int, Span span) { return count_equal(scan, law, cut, span); });
    const double ties = least(same, __builtin_ceil(least(fit, kManyTies)));
    if (cut != law.cut) law.tie = INT32_MAX;  // of the cut before
    law.cut = cut;
    if (ties < same)
      law.tie = find(ties - 0.5, [&](const auto& scan, Span span, double r) {
        return scan.crossing(span, equals(law, cut), r);
      });
    law.sum = above(law, cut, true) + ties * each;
  }
  static constexpr double kManyTies = 1e9;

  // Of kept ids with a logit above x: their mass, or how many.
  double above(const Law<T>& law, float x, bool by_mass) {
    return weigh([&](const auto& scan, int, Span span) {
      return by_mass ? mass_above(scan, law, x, span) : count_above(scan, law, x, span);
    });
  }
  template <class Scan>
  BLOCKDRAFT_SCAN static double mass_above(const Scan& scan, const Law<T>& law, float x,
                                           Span span) {
    return scan
        .sum(span,
             [&law, x](auto at, auto&) {
               return at.select(law.logits.load(at) > at.all(x), law.template weight<false>(at),
                                at.all(0.0f));
             })
        .sum;
  }
  template <class Scan>
  BLOCKDRAFT_SCAN static double count_above(const Scan& scan, const Law<T>& law, float x,
                                            Span span) {
    return scan
        .sum(span,
             [&law, x](auto at, auto&) {
               return at.select(law.logits.load(at) > at.all(x), at.all(1.0f), at.all(0.0f));
             })
        .sum;
  }
  template <class Scan>
  BLOCKDRAFT_SCAN static double count_equal(const Scan& scan, const Law<T>& law, float x,
                                            Span span) {
    return scan.sum(span, equals(law, x)).sum;
  }
  static auto equals(const Law<T>& law, float x) {  // of kept ids
    return [&law, x, last = x == law.cut ? law.tie : INT32_MAX](auto at, auto&) {
      const auto kept = (law.logits.load(at) == at.all(x)) & (at.template id<T>() <= at.all(last));
      return at.select(kept, at.all(1.0f), at.all(0.0f));
    };
  }

  // Integers in the order of the floats; -0 counts as 0.
  static uint32_t image(float x) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, x == 0 ? 0.0f : x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
  }
  static float number(uint32_t image) {
    return __builtin_bit_cast(float, image >> 31 ? image & 0x7fffffffu : ~image);
  }

  Crew& crew_;
  Vocabulary vocabulary_;  // by value: a pointer within the body's own object would keep a GPU from
                           // holding it in registers
};

}  // namespace blockdraft
