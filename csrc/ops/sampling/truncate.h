// Min-p, then top-k, then top-p of what these kept. Ids rank by logit; of equal logits the lower id
// ranks first.
//
// The cut, the logit of the last kept id, is found by bisection in a list of the logits that may be
// it: a single thread's (listing.h) or a crew's (bracket.h). If the list cannot hold that many
// logits, which takes many equal ones, the row is read at each step.
#pragma once

#include "ops/sampling/bracket.h"

namespace blockdraft {

// Truncates the distribution p in place. Its partials are overwritten.
template <class Sampler, class T, class List>
class Truncation {
 public:
  // `list`: of p, or null; `listed`: whether it has the greatest logits, and nothing is measured.
  Truncation(Sampler& sampler, Distribution<T>& p, Partial* partials, List* list, bool listed)
      : sampler_(sampler),
        p_(p),
        partials_(partials),
        list_(list),
        listed_(listed),
        touched_(listed) {}

  // kShare: keeps an id if it has at least `limit` times the greatest weight; otherwise if the mass,
  // or the number, of the ids that rank before it is below `limit`.
  void keep(Cut kind, double limit) {
    if (kind == Cut::kShare) {
      p_.cut = below_share(limit);
      p_.tie = -1;  // an id at the cut is left out, too
    }
    Place place{p_.cut, p_.sum - ties_ * p_.weight_of(p_.cut)};
    if (kind != Cut::kMass || !p_.truncated() || !(place.before < limit)) place = find(kind, limit);
    if (place.cut == -__builtin_inff()) return;
    if (kind == Cut::kShare) {
      p_.sum = place.mass;
      return;
    }
    const bool by_mass = kind == Cut::kMass;
    const double each = p_.weight_of(place.cut);
    const double fit =
        by_mass ? (each > 0 ? (limit - place.before) / each : kManyTies) : limit - place.before;
    if (place.cut != p_.cut) {
      ties_ = same_ = place.equal;
      p_.tie = INT32_MAX;
    }
    // At least one of those at a new cut: the sums that led to it may have been rounded otherwise.
    ties_ =
        least(ties_, most(__builtin_ceil(least(fit, kManyTies)), place.cut != p_.cut ? 1.0 : 0.0));
    p_.cut = place.cut;
    p_.sum = (by_mass ? place.before : place.mass) + ties_ * each;
  }

  // With the cut known: decides which ids at the cut are kept and, if a token is drawn, states the
  // partials anew.
  void settle(bool drawn) {
    if (!(ties_ < same_) && !(drawn && (touched_ || p_.truncated()))) return;
    sampler_.weigh([&](const auto& scan, int block, Span span) {
      const Sums found = around_cut(scan, block, span, drawn);
      if (drawn && scan.leader()) partials_[block] = {found.sum, p_.top, kFine};
      return found.other;
    });
    if (drawn) {
      const double sum = sampler_.add_ties(partials_, ties_, p_.weight_of(p_.cut));
      if (p_.truncated()) p_.sum = sum;
    }
    if (ties_ < same_)
      p_.tie =
          sampler_.find(sampler_.sums(), ties_ - 0.5, [&](const auto& scan, Span span, double r) {
            return scan.crossing(span, equals(p_.logits, p_.cut), r);
          });
  }

 private:
  using Scan = typename Sampler::Scan;
  static constexpr double kManyTies = 1e9;
  static constexpr double kNear = 0.02;

  struct Place {
    float cut;
    double before = 0;           // the mass, or the number, of the ids above the cut
    double mass = 0, equal = 0;  // the mass of those; the number of the ids at the cut
  };

  Grid grid() const { return Grid::of(p_.logits); }

  // The number below the least one that has that share of the greatest weight.
  float below_share(double share) {
    const double exponent = log2_double(share);
    const float greatest = listed_ ? list_->high() : greatest_logit();
    uint32_t left_out = image(-__builtin_inff());
    uint32_t kept = image(greatest);
    while (kept - left_out > 1) {
      const uint32_t middle = left_out + (kept - left_out) / 2;
      ((double(number(middle)) - greatest) * p_.scale >= exponent ? kept : left_out) = middle;
    }
    return number(left_out);
  }
  float greatest_logit() {
    // Each vocab_block of such a row is measured from its own greatest logit.
    if (sampler_.vocabulary().block <= Scan::kHeld && p_.logits.plain()) return p_.top;
    return sampler_.greatest(p_.logits);
  }

  // The cut; of a share it is known, and its place is that of p_.
  Place find(Cut kind, double limit) {
    const bool by_mass = kind != Cut::kCount;
    if (!Sampler::kHolds && kind == Cut::kShare) return {p_.cut, 0, above(p_.cut, true), 0};
    Place place{p_.cut};
    float guess = __builtin_inff();
    Limits within{p_.cut, guess};
    if (Sampler::kHolds || list_) {  // a GPU's compiler cannot tell that it is not null
      const double tail = p_.sum - ties_ * p_.weight_of(p_.cut) - limit;
      double doubt = List::kDoubt;
      BLOCKDRAFT_ROLLED
      for (int tries = listed_ ? 0 : 1; tries <= 2; ++tries) {
        if (tries > 0) {
          touched_ = true;
          listed_ = list_->around(kind, limit, tail, doubt, within);
          doubt *= listed_ ? 2 : 0.5;
        }
        if constexpr (Sampler::kHolds)
          if (kind == Cut::kShare) return {p_.cut, 0, list_->mass(), 0};
        if (listed_ && search_list(limit, by_mass, place, within)) {
          place.mass = by_mass ? place.before : above(place.cut, true);
          place.equal = list_->equal(place.cut);
          return place;
        }
      }
      if constexpr (Sampler::kLists)
        listed_ = list_->everything();
      else
        listed_ = false;
      guess = list_->guess();
    }
    return search_row(limit, by_mass, guess);
  }

  // Likewise, by readings of the row, or of all its logits' list. First p_'s own cut is tried, then
  // the guess, and whether it is the cut.
  Place search_row(double limit, bool by_mass, float guess) {
    uint32_t low = grid().at(p_.cut) - 1, high = grid().at(__builtin_inff());
    const uint32_t guessed = grid().at(guess);
    uint32_t next = guessed;
    Place place{__builtin_inff()};
    bool known = false;
    for (bool first = true;; first = false) {
      const uint32_t middle = low < next && next < high ? next : low + (high - low) / 2;
      const float x = known ? place.cut : first ? p_.cut : grid().number(middle);
      const Sums found = around(x, by_mass || known, known);
      if (known) {
        place.mass = found.sum;
        place.equal = found.other;
        return place;
      }
      const bool beyond = found.sum < limit;
      if (beyond) place = {x, found.sum};
      if (first) {
        known = beyond;
        continue;
      }
      (beyond ? high : low) = middle;
      next = beyond && middle == guessed ? grid().at(grid().below(guess)) : 0;
      known = high - low <= 1;
    }
  }

  // False if the cut is not in the list; then it is between those limits.
  bool search_list(double limit, bool by_mass, Place& place, Limits& within) {
    Place high{list_->high(), 0};
    Place low{most(list_->low(), p_.cut), 0};
    high.before = above(high.cut, by_mass);
    if (!(high.before < limit)) {
      within.low = high.cut;
      return false;
    }
    low.before = above(low.cut, by_mass);
    if (low.before < limit) {
      within.high = low.cut;
      place = low;
      return low.cut == p_.cut;
    }
    if constexpr (Sampler::kLists) {
      approach(low, high, limit, by_mass);
      const Listing part = list_->part(low.cut, high.cut);
      if (part.size) {
        const float* const values = by_mass ? part.masses : part.counts;
        place = search(low.cut, high, limit, [&](float x) {
          return high.before +
                 sum_between(Scan(), part.logits, values, x, __builtin_inff(), part.span());
        });
        return true;
      }
    }
    place = search(low.cut, high, limit, [&](float x) { return above(x, by_mass); });
    return true;
  }

  // Brings both closer to where a straight line between them is at the limit: the mass is nearly one
  // of the few logits that are listed.
  void approach(Place& low, Place& high, double limit, bool by_mass) {
    const uint32_t first = grid().at(low.cut), last = grid().at(high.cut);
    const double middle = (low.before - limit) / (low.before - high.before);
    for (int side = -1; side <= 1; side += 2) {
      const double part = middle + side * kNear;
      if (!(part > 0 && part < 1)) continue;
      const float x = grid().number(first + uint32_t(part * (last - first)));
      const double before = above(x, by_mass);
      (before < limit ? high : low) = {x, before};
    }
  }

  // Bisects, with above(low) >= limit > above(high).
  template <class Above>
  Place search(float lowest, Place high, double limit, Above above) {
    uint32_t low = grid().at(lowest) - 1;  // on the grid, and not above `lowest`
    uint32_t place = grid().at(high.cut);
    while (place - low > 1) {
      const uint32_t middle = low + (place - low) / 2;
      const double mass = above(grid().number(middle));
      if (mass < limit) {
        place = middle;
        high.before = mass;
      } else {
        low = middle;
      }
    }
    return {grid().number(place), high.before};
  }

  // The mass, or the number, of the ids with a logit above x >= p_.cut.
  double above(float x, bool by_mass) { return around(x, by_mass, false).sum; }
  // Likewise, and if `equal` the number of the ids whose logit it is.
  Sums around(float x, bool by_mass, bool equal) {
    if (listed_) return {list_->above(x, by_mass), equal ? list_->equal(x) : 0.0};
    if constexpr (Sampler::kHolds) {
      return sums_of(sampler_.crew().together(), p_.logits, sampler_.vocabulary().all(),
                     around_in(x, by_mass));
    } else {
      const double sum = sampler_.weigh([&](const auto& scan, int, Span span) {
        return by_mass ? mass_above(scan, p_, x, span) : count_above(scan, p_, x, span);
      });
      if (!equal) return {sum, 0};
      return {sum, sampler_.weigh([&](const auto& scan, int, Span span) {
                return count_equal(scan, p_.logits, x, span);
              })};
    }
  }
  auto around_in(float x, bool by_mass) const {
    return [&p = p_, x, by_mass](auto at, auto y, auto& equal) {
      equal += at.select(y == at.all(x), at.all(1.0f), at.all(0.0f));
      const auto own = by_mass ? p.weight_of(at, y) : at.all(1.0f);
      return at.select(y > at.all(x), own, at.all(0.0f));
    };
  }
  // In a vocab_block; the mass only if `drawn`.
  template <class OfBlock>
  Sums around_cut(const OfBlock& scan, int block, Span span, bool drawn) const {
    if constexpr (Sampler::kLists)
      if (const Listing* const listing = listed_ ? list_->by_blocks() : nullptr) {
        const Span own{listing->starts[block], listing->starts[block + 1], -1};
        const Sums found = Scan::sums(own, [&list = *listing, x = p_.cut](auto at, auto& equal) {
          const auto logit = at.load(list.logits);
          equal += at.select(logit == at.all(x), at.load(list.counts), at.all(0.0f));
          return at.select(logit > at.all(x), at.load(list.masses), at.all(0.0f));
        });
        return {partials_[block].sum + found.sum, found.other};
      }
    if constexpr (Sampler::kHolds) {
      if (listed_ && list_->by_blocks()) return list_->around_in(block, p_.cut);
      return sums_of(scan, p_.logits, span, around_in(p_.cut, drawn));
    } else {
      return {drawn ? mass_above(scan, p_, p_.cut, span) : 0.0,
              count_equal(scan, p_.logits, p_.cut, span)};
    }
  }

  template <class Scan>
  BLOCKDRAFT_SCAN static double count_equal(const Scan& scan, const Logits<T>& logits, float x,
                                            Span span) {
    return scan.sum(span, equals(logits, x)).sum;
  }
  static auto equals(const Logits<T>& logits, float x) {
    return [&logits, x](auto at, auto&) {
      return at.select(logits.load(at) == at.all(x), at.all(1.0f), at.all(0.0f));
    };
  }

  Sampler& sampler_;
  Distribution<T>& p_;
  Partial* partials_;
  List* list_;
  bool listed_;                 // whether it has the logits around the cut
  bool touched_;                // whether the partials have to be stated anew
  double same_ = 0, ties_ = 0;  // ids at the cut, and how many of them are kept
};

template <class Sampler, class T, class List>
void truncate(Sampler& sampler, Distribution<T>& p, const Sampling& sampling, Partial* partials,
              bool drawn, List* list, bool listed = false) {
  Truncation<Sampler, T, List> truncation(sampler, p, partials, list, listed);
  BLOCKDRAFT_ROLLED
  for (int i = 0; i < 3; ++i) {
    const Cut kind = Cut(i);
    if (!sampling.cuts(kind, sampler.vocabulary().size)) continue;
    const double limit = kind == Cut::kShare   ? sampling.min_p
                         : kind == Cut::kCount ? double(sampling.top_k)
                                               : sampling.top_p * p.sum;
    truncation.keep(kind, limit);
  }
  truncation.settle(drawn);
}

}  // namespace blockdraft
