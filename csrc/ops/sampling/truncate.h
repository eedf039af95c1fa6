// Min-p, then top-k, then top-p of what these kept. Ids rank by logit; of equal logits the lower id
// ranks first.
//
// The logit of the last kept id, the cut, is found in about one reading of the row: of 16-bit logits
// on a CPU by a tally of their numbers, which replaces the measuring. Else a sample of the row gives
// two logits between which the cut lies very likely. The reading sums what is above them and lists
// what is between them; the search goes on in the list. If the list cannot hold that many logits,
// which takes many equal ones, the search reads the row at each step. So it does on CDNA, where all
// this code in one kernel takes too many registers.
#pragma once

#include "ops/sampling/tally.h"

namespace blockdraft {

// Maps floats to integers of the same order; -0 counts as 0.
inline uint32_t image(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x == 0 ? 0.0f : x);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
inline float number(uint32_t image) {
  return __builtin_bit_cast(float, image >> 31 ? image & 0x7fffffffu : ~image);
}

// Images without low bits that a type never sets.
struct Grid {
  int spare;

  template <class T>
  static constexpr Grid of(const Logits<T>& logits) {
    if (!logits.stored() || sizeof(T) == 4) return {0};
    return {__is_same(T, bf16) ? 16 : 13};
  }
  uint32_t at(float x) const { return image(x) >> spare; }
  float number(uint32_t i) const {
    const uint32_t whole = i << spare;
    return blockdraft::number(whole >> 31 ? whole : whole | ((1u << spare) - 1));
  }
};

// Memory for some of a row's logits: so many of each vocab_block.
struct Shortlist {
  float* logits;
  int room;  // 0: no memory
};

// The mass, or the number, of the ids of an entry of a tally, if its logit is above x.
template <class T>
auto tallied(const Tally& tally, const Distribution<T>& p, float x, bool by_mass) {
  return [tally, x, by_mass, top = p.top, scale = p.scale](auto at, auto&) {
    const auto logit = at.load(tally.logits);
    const auto times = at.select(logit > at.all(x), at.load(tally.counts), at.all(0.0f));
    return by_mass ? times * at.exp2(logit - at.all(top), scale) : times;
  };
}

// Truncates the distribution p in place. Its partials are overwritten.
template <class Sampler, class T>
class Truncation {
 public:
  // `tally`: of the row, or null.
  Truncation(Sampler& sampler, Distribution<T>& p, Partial* partials, const Tally* tally)
      : sampler_(sampler),
        p_(p),
        partials_(partials),
        grid_(Grid::of(p.logits)),
        tally_(tally),
        touched_(tally) {}

  // Keeps ids of at least `share` of the greatest weight.
  void keep_from(double share) {
    const double least = log2_double(share);
    const float greatest = tally_ ? tally_->logits[0] : sampler_.greatest(p_.logits);
    uint32_t left_out = image(-__builtin_inff());
    uint32_t kept = image(greatest);
    while (kept - left_out > 1) {
      const uint32_t middle = left_out + (kept - left_out) / 2;
      ((double(number(middle)) - greatest) * p_.scale >= least ? kept : left_out) = middle;
    }
    p_.cut = number(left_out);
    p_.tie = -1;  // an id at the cut is left out, too
    p_.sum = above(p_.cut, true);
  }

  // Keeps an id if the mass (or the number) of the ids that rank before it is below `limit`.
  void keep(double limit, bool by_mass) {
    Place place{p_.cut, p_.sum - ties_ * weight_of(p_.cut)};
    if (!p_.truncated() || !by_mass || !(place.before < limit)) place = find(limit, by_mass);
    if (place.cut == -__builtin_inff()) return;
    const double each = weight_of(place.cut);
    const double fit =
        by_mass ? (each > 0 ? (limit - place.before) / each : kManyTies) : limit - place.before;
    if (place.cut != p_.cut) {
      ties_ = same_ = equal(place.cut);
      p_.tie = INT32_MAX;
    }
    // At least one of those at a new cut: the sums that led to it may have been rounded otherwise.
    ties_ =
        least(ties_, most(__builtin_ceil(least(fit, kManyTies)), place.cut != p_.cut ? 1.0 : 0.0));
    p_.cut = place.cut;
    p_.sum = (by_mass ? place.before : above(p_.cut, true)) + ties_ * each;
  }

  // With the cut known: decides which ids at the cut are kept and, if a token is drawn, states the
  // partials anew.
  void settle(bool drawn) {
    if (!(ties_ < same_) && !(drawn && (touched_ || p_.truncated()))) return;
    sampler_.weigh([&](const auto& scan, int block, Span span) {
      auto state = [&](const auto& logits, Span within, double mass) {
        if (drawn) {
          mass += mass_above(scan, logits, p_.top, p_.scale, p_.cut, within);
          if (scan.leader()) partials_[block] = {mass, p_.top, kFine};
        }
        return count_equal(scan, logits, p_.cut, within);
      };
      if constexpr (kLists)
        if (listed_) return state(listed(), sampler_.listed_in(block), partials_[block].sum);
      return state(p_.logits, span, 0);
    });
    if (drawn) {
      const double sum = sampler_.add_ties(partials_, ties_, weight_of(p_.cut));
      if (p_.truncated()) p_.sum = sum;
    }
    if (ties_ < same_)
      p_.tie = sampler_.find(ties_ - 0.5, [&](const auto& scan, Span span, double r) {
        return scan.crossing(span, equals(p_.logits, p_.cut), r);
      });
  }

 private:
  static constexpr bool kLists = Sampler::kLists, kTallies = Sampler::kTallies;
  static constexpr double kManyTies = 1e9;
  static constexpr int kSampled = 128;  // ids of each vocab_block
  static constexpr int kCoarse = 17;    // low bits of an image that a guess ignores

  struct Place {
    float cut;
    double before;  // the mass, or the number, of the ids above the cut
  };

  double weight_of(float x) const { return exp2_double((double(x) - p_.top) * p_.scale); }
  float logit_of(float weight) const {
    return float(p_.top + log2_double(double(weight)) / p_.scale);
  }

  Place find(double limit, bool by_mass) {
    if constexpr (kTallies)
      if (tally_) return search_tally(limit, by_mass);
    if constexpr (kLists) {
      Place place;
      if (listed_ && search_list(limit, by_mass, place)) return place;
      double doubt = 1;
      for (int tries = 0; tries < 3 && sampler_.shortlist().room; ++tries) {
        guess(limit, by_mass, doubt);
        listed_ = read(by_mass);
        if (listed_ && search_list(limit, by_mass, place)) return place;
        doubt *= listed_ ? 2 : 0.5;
      }
      listed_ = false;
    }
    return search_row(limit, by_mass);
  }

  Place search_tally(double limit, bool by_mass) {
    const double upto = above(p_.cut, by_mass);
    if (upto < limit) return {p_.cut, upto};
    const double r = limit * (1 - 0x1p-52);  // the sum has to reach the limit, not to exceed it
    const int i = Sampler::Scan::crossing(tally_->span(), tallied(*tally_, p_, p_.cut, by_mass), r);
    const float cut = tally_->logits[i];
    return {cut, above(cut, by_mass)};
  }

  Place search_row(double limit, bool by_mass) {
    Place high{__builtin_inff(), 0};
    if constexpr (!kLists) {
      const double mass = above(p_.cut, by_mass);
      return mass < limit ? Place{p_.cut, mass} : search(p_.cut, high, limit, by_mass);
    }
    float low = p_.cut;
    const float guessed[] = {high_, low_};  // perhaps rightly, but the list was too long
    for (float x : guessed) {
      if (!(x > low && x < high.cut)) continue;
      const double mass = above(x, by_mass);
      if (mass < limit)
        high = {x, mass};
      else
        low = x;
    }
    if (low == p_.cut) {
      const double mass = above(low, by_mass);
      if (mass < limit) return {low, mass};
    }
    return search(low, high, limit, by_mass);
  }

  // False if the cut is not in the list.
  bool search_list(double limit, bool by_mass, Place& place) {
    const Place high{least(high_, greatest_), by_mass ? mass_above_ : count_above_};
    const float low = most(low_, p_.cut);
    if (!(high.before < limit)) return false;
    const double upto = above(low, by_mass);
    place = upto < limit ? Place{low, upto} : search(low, high, limit, by_mass);
    return place.cut > low || low == -__builtin_inff();
  }

  // Bisects, with above(low) >= limit > above(high).
  Place search(float lowest, Place high, double limit, bool by_mass) {
    uint32_t low = grid_.at(lowest);
    uint32_t place = grid_.at(high.cut);
    while (place - low > 1) {
      const uint32_t middle = low + (place - low) / 2;
      const double mass = above(grid_.number(middle), by_mass);
      if (mass < limit) {
        place = middle;
        high.before = mass;
      } else {
        low = middle;
      }
    }
    return {grid_.number(place), high.before};
  }

  // Sets low_ and high_, between which the cut lies, unless the sample deceives: with more `doubt`
  // they are farther apart. The root of a sum of n terms has the standard deviation of half the
  // root of one term, whatever n is. For a mass, the greatest of the terms counts.
  void guess(double limit, bool by_mass, double doubt) {
    low_ = p_.cut;
    high_ = __builtin_inff();
    if (sampler_.vocabulary().block <= sampler_.shortlist().room) return;
    const double gain = sample(by_mass);
    const double tail = p_.sum - ties_ * weight_of(p_.cut) - limit;
    const double root = __builtin_sqrt(by_mass ? most(tail, 0.0) : limit);
    const double step = doubt * __builtin_sqrt(by_mass ? gain : 2 * gain);
    // How far the sum at x is beyond the limit, in the direction in which x has to go up.
    auto beyond = [&](uint32_t coarse) {
      const float x = number(coarse << kCoarse);
      const double sum = by_mass ? weights_upto(x) : values_above(x);
      const double difference = __builtin_sqrt(gain * sum) - root;
      return by_mass ? -difference / __builtin_sqrt(double(x)) : difference;
    };
    const uint32_t start = image(by_mass ? float(tail / sampler_.vocabulary().size / 16) : low_);
    const uint32_t stop = image(sampler_.greatest_listed());
    const uint32_t first = start >> kCoarse;
    const uint32_t last = most(first, stop >> kCoarse) + 1;
    const uint32_t low = turn(first, last, [&](uint32_t x) { return beyond(x) > step; });
    const uint32_t high = turn(low, last, [&](uint32_t x) { return beyond(x) > -step; }) + 1;
    auto logit = [&](uint32_t coarse) {
      const float x = number(coarse << kCoarse);
      return grid_.at(by_mass ? logit_of(x) : x);
    };
    if (low > first) low_ = most(low_, grid_.number(logit(low)));
    if (high < last) high_ = grid_.number(logit(high) + 1);
  }

  // The last place at which `holds` is true, if it is at low and is not at high.
  template <class Holds>
  static uint32_t turn(uint32_t low, uint32_t high, Holds holds) {
    while (high - low > 1) {
      const uint32_t middle = low + (high - low) / 2;
      (holds(middle) ? low : high) = middle;
    }
    return low;
  }

  // Lists the logits, or the weights, of the first ids of each vocab_block. Returns how many ids
  // stand behind each of them.
  double sample(bool by_mass) {
    const Shortlist list = sampler_.shortlist();
    const float low = by_mass && !p_.truncated() ? 0 : by_mass ? float(weight_of(p_.cut)) : p_.cut;
    const int count = least(kSampled, list.room);
    const double ids = sampler_.weigh([&](const auto& scan, int block, Span span) {
      const Span first{span.first, least(span.stop, span.first + count), span.hole};
      float* const out = list.logits + block * list.room;
      if (by_mass)
        collect_weights(scan, p_, first, low, out, list.room);
      else
        collect(scan, p_.logits, first, low, __builtin_inff(), out, list.room);
      return double(first.stop - first.first);
    });
    return sampler_.vocabulary().size / ids;
  }

  // A reading of the row: what is above high_, and a list of the logits above low_ up to there.
  // False if there are too many.
  bool read(bool by_mass) {
    const Shortlist list = sampler_.shortlist();
    count_above_ = sampler_.weigh([&](const auto& scan, int block, Span span) {
      float* const out = list.logits + block * list.room;
      const int count = collect(scan, p_.logits, span, low_, high_, out, list.room);
      const bool all = high_ == __builtin_inff();
      const double mass = all ? 0 : mass_above(scan, p_.logits, p_.top, p_.scale, high_, span);
      if (scan.leader()) partials_[block] = {mass, 0, count};
      return all || by_mass ? 0 : count_above(scan, p_.logits, high_, span);
    });
    touched_ = true;
    mass_above_ = 0;
    bool fits = true;
    for (int i = 0; i < sampler_.vocabulary().blocks; ++i) {
      mass_above_ += partials_[i].sum;
      fits &= partials_[i].status <= list.room;
    }
    greatest_ = sampler_.greatest_listed();
    return fits;
  }

  // The mass, or the number, of the ids with a logit above x >= p_.cut.
  double above(float x, bool by_mass) {
    if constexpr (kTallies)
      if (tally_) return Sampler::Scan::sum(tally_->span(), tallied(*tally_, p_, x, by_mass)).sum;
    auto sum = [&](const auto& scan, const auto& logits, Span span) {
      return by_mass ? mass_above(scan, logits, p_.top, p_.scale, x, span)
                     : count_above(scan, logits, x, span);
    };
    if constexpr (kLists)
      if (listed_)
        return (by_mass ? mass_above_ : count_above_) +
               sampler_.weigh_list(
                   [&](const auto& scan, Span span) { return sum(scan, listed(), span); });
    return sampler_.weigh(
        [&](const auto& scan, int, Span span) { return sum(scan, p_.logits, span); });
  }
  double equal(float x) {
    if constexpr (kTallies)
      if (tally_) {
        auto times = [tally = *tally_, x](auto at, auto&) {
          const auto equal = at.load(tally.logits) == at.all(x);
          return at.select(equal, at.load(tally.counts), at.all(0.0f));
        };
        return Sampler::Scan::sum(tally_->span(), times).sum;
      }
    if constexpr (kLists)
      if (listed_)
        return sampler_.weigh_list(
            [&](const auto& scan, Span span) { return count_equal(scan, listed(), x, span); });
    return sampler_.weigh(
        [&](const auto& scan, int, Span span) { return count_equal(scan, p_.logits, x, span); });
  }
  double values_above(float x) {
    return sampler_.weigh_list(
        [&](const auto& scan, Span span) { return count_above(scan, listed(), x, span); });
  }
  double weights_upto(float x) {
    return sampler_.weigh_list(
        [&](const auto& scan, Span span) { return sum_upto(scan, listed(), x, span); });
  }
  Logits<float> listed() const { return {sampler_.shortlist().logits, nullptr, 1, nullptr}; }

  template <class Scan, class S>
  BLOCKDRAFT_SCAN static double mass_above(const Scan& scan, const Logits<S>& logits, float top,
                                           double scale, float x, Span span) {
    auto mass = [&logits, top, scale, x](auto at, auto&) {
      const auto logit = logits.load(at);
      const auto weight = at.exp2(logit - at.all(top), scale);
      return at.select(logit > at.all(x), weight, at.all(0.0f));
    };
    return scan.sum(span, mass).sum;
  }
  template <class Scan, class S>
  BLOCKDRAFT_SCAN static double count_above(const Scan& scan, const Logits<S>& logits, float x,
                                            Span span) {
    auto one = [&logits, x](auto at, auto&) {
      return at.select(logits.load(at) > at.all(x), at.all(1.0f), at.all(0.0f));
    };
    return scan.sum(span, one).sum;
  }
  template <class Scan, class S>
  BLOCKDRAFT_SCAN static double count_equal(const Scan& scan, const Logits<S>& logits, float x,
                                            Span span) {
    return scan.sum(span, equals(logits, x)).sum;
  }
  template <class S>
  static auto equals(const Logits<S>& logits, float x) {
    return [&logits, x](auto at, auto&) {
      return at.select(logits.load(at) == at.all(x), at.all(1.0f), at.all(0.0f));
    };
  }
  template <class Scan>
  BLOCKDRAFT_SCAN static double sum_upto(const Scan& scan, const Logits<float>& list, float x,
                                         Span span) {
    auto value = [&list, x](auto at, auto&) {
      const auto own = list.load(at);
      return at.select(own > at.all(x), at.all(0.0f), at.maximum(at.all(0.0f), own));
    };
    return scan.sum(span, value).sum;
  }
  template <class Scan>
  BLOCKDRAFT_SCAN static int collect(const Scan& scan, const Logits<T>& logits, Span span,
                                     float low, float high, float* out, int room) {
    return scan.collect(span, [&logits](auto at) { return logits.load(at); }, low, high, out, room);
  }
  template <class Scan>
  BLOCKDRAFT_SCAN static int collect_weights(const Scan& scan, const Distribution<T>& p, Span span,
                                             float low, float* out, int room) {
    auto weight = [&p](auto at) { return at.exp2(p.logits.load(at) - at.all(p.top), p.scale); };
    return scan.collect(span, weight, low, __builtin_inff(), out, room);
  }

  Sampler& sampler_;
  Distribution<T>& p_;
  Partial* partials_;
  Grid grid_;
  const Tally* tally_;
  bool listed_ = false;  // whether the list holds all logits in low_ .. high_
  bool touched_;         // whether the partials have to be stated anew
  float low_ = 0, high_ = 0, greatest_ = 0;
  double mass_above_ = 0, count_above_ = 0;  // high_
  double same_ = 0, ties_ = 0;               // ids at the cut, and how many of them are kept
};

// The distribution of a tallied row before it is truncated.
template <class Scan, class T>
Distribution<T> tallied_distribution(const Logits<T>& logits, const Tally& tally, double scale) {
  Distribution<T> p{logits,
                    scale,
                    0,
                    tally.logits[0],
                    -__builtin_inff(),
                    INT32_MAX,
                    Distribution<T>::kSpread,
                    tally.status};
  if (p.status != kFine) return p;
  p.sum = Scan::sum(tally.span(), tallied(tally, p, -__builtin_inff(), true)).sum;
  return p;
}

template <class Sampler, class T>
void truncate(Sampler& sampler, Distribution<T>& p, const Sampling& sampling, Partial* partials,
              bool drawn, const Tally* tally = nullptr) {
  Truncation<Sampler, T> truncation(sampler, p, partials, tally);
  if (sampling.min_p > 0) truncation.keep_from(sampling.min_p);
  if (sampling.top_k > 0 && sampling.top_k < sampler.vocabulary().size)
    truncation.keep(sampling.top_k, false);
  if (sampling.top_p < 1) truncation.keep(sampling.top_p * p.sum, true);
  truncation.settle(drawn);
}

}  // namespace blockdraft
