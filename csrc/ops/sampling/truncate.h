// Min-p, then top-k, then top-p of what these kept. Ids rank by logit; of equal logits the lower id
// ranks first.
//
// The cut, the logit of the last kept id, is found by bisection: on a CPU in a list of the logits
// that may be it (listing.h). A GPU reads the row at each step, because all this code in one kernel
// takes too many registers, and so does a CPU if the list cannot hold that many logits, which takes
// many equal ones.
#pragma once

#include "ops/sampling/listing.h"

namespace blockdraft {

// Truncates the distribution p in place. Its partials are overwritten.
template <class Sampler, class T>
class Truncation {
 public:
  // `lister`: of p, or null; `listed`: whether it lists the greatest logits, and nothing is measured.
  Truncation(Sampler& sampler, Distribution<T>& p, Partial* partials, Lister<Sampler, T>* lister,
             bool listed)
      : sampler_(sampler),
        p_(p),
        partials_(partials),
        lister_(lister),
        list_(listed ? &lister->listing() : nullptr),
        touched_(listed) {}

  // Keeps ids of at least `share` of the greatest weight.
  void keep_from(double share) {
    const double least = log2_double(share);
    const float greatest = list_ ? list_->greatest : sampler_.greatest(p_.logits);
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
    Place place{p_.cut, p_.sum - ties_ * p_.weight_of(p_.cut)};
    if (!p_.truncated() || !by_mass || !(place.before < limit)) place = find(limit, by_mass);
    if (place.cut == -__builtin_inff()) return;
    const double each = p_.weight_of(place.cut);
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
      const CutInBlock found = around_cut(scan, block, span, drawn);
      if (drawn && scan.leader()) partials_[block] = {found.above, p_.top, kFine};
      return found.equal;
    });
    if (drawn) {
      const double sum = sampler_.add_ties(partials_, ties_, p_.weight_of(p_.cut));
      if (p_.truncated()) p_.sum = sum;
    }
    if (ties_ < same_)
      p_.tie = sampler_.find(ties_ - 0.5, [&](const auto& scan, Span span, double r) {
        return scan.crossing(span, equals(p_.logits, p_.cut), r);
      });
  }

 private:
  using Scan = typename Sampler::Scan;
  static constexpr double kManyTies = 1e9;
  static constexpr double kNear = 0.02;

  struct Place {
    float cut;
    double before;  // the mass, or the number, of the ids above the cut
  };

  Grid grid() const { return Grid::of(p_.logits); }

  Place find(double limit, bool by_mass) {
    if constexpr (Sampler::kLists) {
      Place place;
      if (list_ && search_list(limit, by_mass, place)) return place;
      const double tail = p_.sum - ties_ * p_.weight_of(p_.cut) - limit;
      double doubt = 1;
      for (int tries = 0; tries < 2 && lister_; ++tries) {
        touched_ = true;
        list_ = lister_->around(limit, tail, by_mass, doubt) ? &lister_->listing() : nullptr;
        if (list_ && search_list(limit, by_mass, place)) return place;
        doubt *= list_ ? 2 : 0.5;
      }
      list_ = lister_ && lister_->everything() ? &lister_->listing() : nullptr;
    }
    const double mass = above(p_.cut, by_mass);
    if (mass < limit) return {p_.cut, mass};
    return search(p_.cut, {__builtin_inff(), 0}, limit, [&](float x) { return above(x, by_mass); });
  }

  // False if the cut is not in the list.
  bool search_list(double limit, bool by_mass, Place& place) {
    Place high{least(list_->high, list_->greatest),
               by_mass ? list_->mass_above : list_->count_above};
    Place low{most(list_->low, p_.cut), 0};
    if (!(high.before < limit)) return false;
    low.before = above(low.cut, by_mass);
    if (low.before < limit) {
      place = low;
      return low.cut == p_.cut;
    }
    Listing part{};
    if (list_->starts) {
      approach(low, high, limit, by_mass);
      part = lister_->part(low.cut, high.cut);
    }
    place = search(low.cut, high, limit, [&](float x) {
      if (!part.size) return above(x, by_mass);
      const float* const values = by_mass ? part.masses : part.counts;
      return high.before +
             sum_between(Scan(), part.logits, values, x, __builtin_inff(), part.span());
    });
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
  double above(float x, bool by_mass) {
    if constexpr (Sampler::kLists)
      if (list_)
        return (by_mass ? list_->mass_above : list_->count_above) +
               listed(by_mass ? list_->masses : list_->counts, x, __builtin_inff(), list_->span());
    return sampler_.weigh([&](const auto& scan, int, Span span) {
      return by_mass ? mass_above(scan, p_, x, span) : count_above(scan, p_, x, span);
    });
  }
  double equal(float x) {
    if constexpr (Sampler::kLists)
      if (list_) return listed(list_->counts, Grid{0}.below(x), x, list_->span());
    return sampler_.weigh(
        [&](const auto& scan, int, Span span) { return count_equal(scan, p_.logits, x, span); });
  }
  struct CutInBlock {
    double above, equal;  // the mass of the ids above the cut, the number of those at it
  };
  // The mass is that only if `drawn`.
  template <class OfBlock>
  CutInBlock around_cut(const OfBlock& scan, int block, Span span, bool drawn) const {
    if constexpr (Sampler::kLists)
      if (list_ && list_->starts) {
        const Span own{list_->starts[block], list_->starts[block + 1], -1};
        const Sums found = Scan::sums(own, [&list = *list_, x = p_.cut](auto at, auto& equal) {
          const auto logit = at.load(list.logits);
          equal += at.select(logit == at.all(x), at.load(list.counts), at.all(0.0f));
          return at.select(logit > at.all(x), at.load(list.masses), at.all(0.0f));
        });
        return {partials_[block].sum + found.sum, found.other};
      }
    return {drawn ? mass_above(scan, p_, p_.cut, span) : 0.0,
            count_equal(scan, p_.logits, p_.cut, span)};
  }
  double listed(const float* values, float low, float high, Span span) const {
    return sum_between(Scan(), list_->logits, values, low, high, span);
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
  Lister<Sampler, T>* lister_;
  const Listing* list_;         // null: the row itself is searched
  bool touched_;                // whether the partials have to be stated anew
  double same_ = 0, ties_ = 0;  // ids at the cut, and how many of them are kept
};

template <class Sampler, class T>
void truncate(Sampler& sampler, Distribution<T>& p, const Sampling& sampling, Partial* partials,
              bool drawn, Lister<Sampler, T>* lister = nullptr, bool listed = false) {
  Truncation<Sampler, T> truncation(sampler, p, partials, lister, listed);
  if (sampling.min_p > 0) truncation.keep_from(sampling.min_p);
  if (sampling.top_k > 0 && sampling.top_k < sampler.vocabulary().size)
    truncation.keep(sampling.top_k, false);
  if (sampling.top_p < 1) truncation.keep(sampling.top_p * p.sum, true);
  truncation.settle(drawn);
}

}  // namespace blockdraft
