// The logits around a cut, which a crew finds by one reading of the row and holds (Crew::kHolds). A
// sample tells where they are. Each scan lists those of its own vocab_blocks, one after the other,
// unless these are too many.
#pragma once

#include "ops/sampling/listing.h"

namespace blockdraft {

template <class Sampler, class T>
class Bracket {
  using Crew = typename Sampler::CrewType;
  using Numbers = typename Crew::Numbers;

 public:
  // The memory of `sums`, and of `partials`, is the reading's until another one.
  Bracket(const Sampler& sampler, const Distribution<T>& p, double* sums, Partial* partials)
      : crew_(sampler.crew()),
        vocabulary_(sampler.vocabulary()),
        grid_(Grid::of(p.logits)),
        p_(p),
        sums_(sums),
        partials_(partials),
        list_(crew_.list()) {}

  static constexpr double kDoubt = 2;

  float low() const { return low_; }
  float high() const { return high_; }
  // Where the sample has the cut, a logit that it holds: the cut itself, if few numbers are many.
  float guess() const { return guess_; }

  // Holds the logits above a cut that is known (kShare), or around the one above which ids have a
  // mass, or number, of `limit` and below which a mass of `tail` is left. False if there are too
  // many. What is not `within` cannot be it.
  bool around(Cut kind, double limit, double tail, double doubt, Limits within) {
    low_ = p_.cut;
    high_ = __builtin_inff();
    if (kind != Cut::kShare && !guess(kind == Cut::kMass, limit, tail, doubt, within)) return false;
    const Sums above = read(kind == Cut::kShare ? low_ : high_);
    mass_above_ = above.sum;
    count_above_ = above.other;
    if (kind == Cut::kShare) {
      mass_ = above.sum;
      mass_above_ = count_above_ = 0;
    }
    return fits_;
  }
  // The mass above a cut that was known.
  double mass() const { return mass_; }

  // The mass, or the number, of the ids with a logit above x, which is between `low` and `high`.
  double above(float x, bool by_mass) const {
    return (by_mass ? mass_above_ : count_above_) +
           crew_.sum(
               [=](auto at, auto y, auto mass) {
                 return at.select(y > at.all(x), by_mass ? mass : at.all(1.0f), at.all(0.0f));
               },
               numbers_, masses_);
  }
  double equal(float x) const {
    return crew_.sum(
        [x](auto at, auto y) { return at.select(y == at.all(x), at.all(1.0f), at.all(0.0f)); },
        numbers_);
  }
  // Whether each scan has listed those of its own vocab_blocks. If so:
  bool by_blocks() const { return by_blocks_; }
  // The mass above x and the number of the ids at it, of a vocab_block of the calling scan.
  Sums around_in(int block, float x) const {
    const double above = high_ == __builtin_inff() ? 0 : partials_[block].sum;
    const Part own = __builtin_bit_cast(Part, sums_[block]);
    if (own.first == own.stop) return {above, 0};
    const auto listed =
        Sampler::Scan::terms(own.stop - own.first, [&](int i) { return list_.out[own.first + i]; });
    auto join = [](Sums a, Sums b) { return Sums{a.sum + b.sum, a.other + b.other}; };
    const Sums found = listed.fold(Sums{}, join, [&](float y) {
      return Sums{y > x ? Sampler::exp2((double(y) - p_.top) * p_.scale) : 0.0, double(y == x)};
    });
    return {above + found.sum, found.other};
  }

 private:
  struct Part {  // of a scan's list
    int first, stop;
  };

  // Sets `low_` and `high_`; false if nothing is between them. The cut is `doubt` times the sample's
  // standard deviation from where that has it, or less, or else among the greatest logits.
  bool guess(bool by_mass, double limit, double tail, double doubt, Limits within) {
    Numbers sample;
    const double each =
        crew_.sample(vocabulary_.all(), [this](auto at) { return p_.logits.load(at); }, sample);
    Numbers shares = Crew::map(
        [this, by_mass](auto at, auto x) {
          const auto own = by_mass ? p_.weight_of(at, x) : at.all(1.0f);
          return at.select(x > at.all(p_.cut), own, at.all(0.0f));
        },
        sample);
    auto found = [&](float from) {
      return crew_.estimate(
          [=](auto at, auto x, auto share) {
            return at.select(x > at.all(from), share, at.all(0.0f));
          },
          sample, shares);
    };
    // The mass below a cut is known better than that above it, which may be one id's.
    const double target = by_mass ? found(p_.cut) - tail / each : limit / each;
    double spread = 0;
    const uint32_t first = grid_.at(p_.cut), end = grid_.at(__builtin_inff());
    BLOCKDRAFT_ROLLED
    for (int i = 0; i < 4; ++i) {
      const bool narrows = i == 3;
      double expected = 0;
      if (narrows) {
        low_ = most(low_, within.low);
        high_ = least(high_, within.high);
        if (!(low_ < high_)) {
          low_ = within.low;
          high_ = within.high;
        }
        shares = Crew::map(
            [low = low_, high = high_](auto at, auto x) {
              const auto in = (x > at.all(low)) & (x <= at.all(high));
              return at.select(in, at.all(1.0f), at.all(0.0f));
            },
            sample);
        expected = found(low_);
        if (!(expected * each > kExpected)) break;
      }
      // The limits tell on which side there may be less.
      const bool from_low = within.low > p_.cut;
      const double amount = narrows  ? (from_low ? expected - kExpected / each : kExpected / each)
                            : i == 0 ? target
                            : i == 1 ? target + spread
                                     : target - spread;
      // The last number above which that much was found.
      uint32_t place = first, beyond = end;
      while (beyond - place > 1) {
        const uint32_t middle = place + (beyond - place) / 2;
        (found(grid_.number(middle)) >= amount ? place : beyond) = middle;
      }
      const float next = grid_.number(place + 1);
      if (i == 0) {
        guess_ = next;
        // A sum's variance is at most its greatest term's share of it.
        spread = doubt *
                 __builtin_sqrt(by_mass ? most(tail, 0.0) * p_.weight_of(least(next, p_.top)) / each
                                        : target);
      }
      if (i == 1) low_ = grid_.number(place);
      if (i == 2) high_ = next;
      if (narrows) (from_low ? high_ : low_) = next;
    }
    return low_ < high_;
  }

  static constexpr double kExpected = 0.75 * Crew::kNumbers;  // no wave's share is then too long

  // Lists what is between `low` and `high`. Returns the mass and the number of the ids above x.
  Sums read(float x) {
    list_ = crew_.list();
    auto found = [&, low = low_, high = high_](auto at, auto y, auto& count) {
      at.append(list_, y, (y > at.all(low)) & (y <= at.all(high)));
      if (x == __builtin_inff()) return at.all(0.0f);
      const auto in = y > at.all(x);
      count += at.select(in, at.all(1.0f), at.all(0.0f));
      return at.select(in, p_.weight_of(at, y), at.all(0.0f));
    };
    Sums above{};  // of the calling scan
    crew_.each_block(vocabulary_, [&](const auto& scan, int block, Span span) {
      const int first = list_.size;
      const Sums own = sums_of(scan, p_.logits, span, found);
      above.sum += own.sum;
      above.other += own.other;
      if (!scan.leader()) return;
      sums_[block] = __builtin_bit_cast(double, Part{first, list_.size});
      partials_[block] = {own.sum, 0, kFine};
    });
    above = {crew_.total(above.sum), crew_.total(above.other)};
    by_blocks_ = fits_ = crew_.fits(list_);
    // Those that stand close together, too many for their scan, are shared by all.
    if (!fits_ && crew_.total(list_.size) <= kExpected) {
      list_ = crew_.list();
      sums_of(crew_.together(), p_.logits, vocabulary_.all(), found);
      fits_ = crew_.fits(list_);
    }
    numbers_ = Crew::held(list_);
    masses_ = Crew::map([this](auto at, auto y) { return p_.weight_of(at, y); }, numbers_);
    return above;
  }

  const Crew& crew_;
  const Vocabulary& vocabulary_;
  Grid grid_;
  const Distribution<T>& p_;
  double* sums_;       // of each vocab_block: a Part
  Partial* partials_;  // likewise: the mass above `high_`, unless that is infinite
  typename Crew::List list_;
  Numbers numbers_, masses_;
  float low_ = 0, high_ = 0, guess_ = 0;
  double mass_ = 0, mass_above_ = 0, count_above_ = 0;  // the latter above `high_`
  bool fits_ = false, by_blocks_ = false;
};

}  // namespace blockdraft
