// What both samplers do with a row of logits, by a crew (tile/scan.h): its distribution, and a draw
// by inverse CDF over ascending ids.
#pragma once

#include "base/philox.h"
#include "base/view.h"
#include "ops/sampling/truncate.h"

namespace blockdraft {

// blockdraft.types.Sampling: one entry for each request.
struct SamplingParams {
  const float* temperature;
  const int32_t* top_k;  // null: off
  const float* top_p;    // null: off
  const float* min_p;    // null: off

  Sampling of(int request) const {
    const float t = constant(temperature + request);
    return {t > 0 ? t : 0.0, top_k ? constant(top_k + request) : 0,
            top_p ? constant(top_p + request) : 1.0, min_p ? constant(min_p + request) : 0.0};
  }

  bool may_truncate() const { return top_k || top_p || min_p; }

  BLOCKDRAFT_POINTERS(temperature, top_k, top_p, min_p)
};

// A row's bits, or null.
inline const uint32_t* words(const View<const uint32_t, 2>& bits, int request, int row) {
  return bits ? bits.at(request, row) : nullptr;
}

template <class Crew, class T>
class Sampler {
 public:
  using Scan = typename Crew::Scan;
  using CrewType = Crew;
  static constexpr bool kLists = Crew::kLists, kHolds = Crew::kHolds;

  // `sums`: memory for one double per vocab_block, which no other row uses at the same time;
  // `lists`: likewise, for truncation where Crew::kLists.
  Sampler(Crew& crew, const Vocabulary& vocabulary, double* sums, const ListMemory& lists)
      : crew_(crew), vocabulary_(vocabulary), sums_(sums), lists_(lists) {}

  const Crew& crew() const { return crew_; }
  const Vocabulary& vocabulary() const { return vocabulary_; }
  const ListMemory& lists() const { return lists_; }

  // The partials of a row's vocab_blocks; at temperature 0, their surveys. `drawn`: see `measure`.
  void measure_row(const Logits<T>& logits, const Sampling& sampling, bool drawn,
                   Partial* partials) {
    Partial start{};
    if constexpr (Scan::kHeld == 0) start = survey_start(Scan(), logits, vocabulary_);
    crew_.each_block(vocabulary_, [&](const auto& scan, int block, Span span) {
      Partial partial;
      if constexpr (Scan::kHeld == 0)
        partial = measure_block(scan, logits, sampling, drawn, start, span);
      else
        partial = measure_block(scan, logits, sampling, drawn, block);
      if (scan.leader()) partials[block] = partial;
    });
  }

  // If a scan holds a vocab_block, the anchor of a plain row's is its greatest logit.
  Partial measure_block(const typename Crew::Scan& scan, const Logits<T>& logits,
                        const Sampling& sampling, bool drawn, int block) const {
    if constexpr (Scan::kHeld > 0) {
      Partial out;
      if (sampling.temperature > 0 &&
          measure_held(scan, logits, sampling.scale(), vocabulary_.span(block), drawn, out))
        return out;
    }
    const Partial start = survey_start(scan, logits, vocabulary_);
    return measure_block(scan, logits, sampling, drawn, start, vocabulary_.span(block));
  }

  // The distribution of a row that is not measured yet.
  Distribution<T> measured_distribution(const Logits<T>& logits, const Sampling& sampling,
                                        bool drawn, Partial* partials) {
    if constexpr (kLists)
      if (lists_.found && sampling.truncates() && sampling.temperature > 0) {
        Distribution<T> p = unmeasured(logits);
        p.scale = sampling.scale();
        Lister<Sampler, T> lister(*this, p, partials);
        const bool listed = lister.greatest(sampling);
        if (!listed) {
          // The search for top-p states the partials anew. It compares sums with single weights,
          // so that products (kProducts), which have errors of their own, are too rough for it.
          const bool searches = sampling.top_p < 1;
          if (!searches || !lister.measure(sampling))
            measure_row(logits, sampling, searches ? Scan::kProducts : drawn, partials);
          p = measured(logits, sampling, partials);
        }
        if (p.status == kFine) truncate(*this, p, sampling, partials, drawn, &lister, listed);
        return p;
      }
    measure_row(logits, sampling, drawn, partials);
    return distribution(logits, sampling, drawn, partials);
  }

  // If truncated, the distribution's partials are stated anew where a token is `drawn` by them, and
  // otherwise lost. Without kCuts, or by a crew that neither lists nor holds logits, it
  // must not be.
  template <bool kCuts = true>
  Distribution<T> distribution(const Logits<T>& logits, const Sampling& sampling, bool drawn,
                               Partial* partials) {
    Distribution<T> p = measured(logits, sampling, partials);
    if (p.status == kFine && sampling.temperature > 0 && sampling.truncates()) {
      if constexpr (kCuts && kHolds) {
        Bracket<Sampler, T> bracket(*this, p, sums_, partials);
        truncate(*this, p, sampling, partials, drawn, &bracket);
      }
      if constexpr (kCuts && kLists)
        truncate(*this, p, sampling, partials, drawn, static_cast<Lister<Sampler, T>*>(nullptr));
    }
    return p;
  }

  // The distribution of a row that sample_drafts has stored: its greatest logit, the natural
  // logarithm of the sum relative to that, and where it is cut.
  static Distribution<T> known_distribution(const Logits<T>& logits, const Sampling& sampling,
                                            const double* lse) {
    const double sum = exp2_double(lse[1] * kLog2e);
    return {logits,      sampling.scale(),         sum,  float(lse[0]), float(lse[2]),
            int(lse[3]), Distribution<T>::kSpread, kFine};
  }

  int row_status(const Logits<T>& logits) {
    crew_.each_block(vocabulary_, [&](const auto& scan, int block, Span span) {
      const Partial partial = survey(scan, logits, span);
      if (scan.leader()) sums_[block] = partial.status;
    });
    return status(sums().fold(
        rank(kEmpty), [](int a, int b) { return least(a, b); },
        [](double status) { return rank(int(status)); }));
  }

  // The greatest logit of a row.
  float greatest(const Logits<T>& logits) {
    return greatest_of(
        [&](const auto& scan, int, Span span) { return survey(scan, logits, span).anchor; });
  }
  // The greatest of f(scan, block, span), each of which is left in sums_[block].
  template <class F>
  float greatest_of(F f) {
    weigh(f);
    return greatest_sum();
  }

  // Calls f(rank, id) for the first n ids of a distribution, by their logits; of equal ones the
  // lower id comes first. Returns how many there are, n at most.
  template <class F>
  int each_greatest(const Distribution<T>& p, int n, F f) {
    greatest(p.logits);  // sums_: the greatest logit of each vocab_block that is not listed yet
    int after = -1;      // the last id that is listed
    for (int rank = 0; rank < n;) {
      const float x = greatest_sum();
      if (!(x >= p.cut) || x == -__builtin_inff()) return rank;
      const int block = Scan::first(vocabulary_.blocks, [&](int i) { return sums_[i] == x; });
      const int id = crew_.within(vocabulary_, block, [&](const auto& scan, Span span) {
        return next_equal(scan, p.logits, x, after, span);
      });
      if (id >= 0) {
        if (x == p.cut && id > p.tie) return rank;
        f(rank++, id);
        after = id;
        continue;
      }
      const int next = crew_.within(vocabulary_, block, [&](const auto& scan, Span span) {
        return __builtin_bit_cast(int, greatest_below(scan, p.logits, x, span));
      });
      crew_.barrier();  // all have read sums_
      if (crew_.leader()) sums_[block] = __builtin_bit_cast(float, next);
      crew_.barrier();
      after = -1;
    }
    return n;
  }

  // Sets sums_[block] = f(scan, block, span) for all vocab_blocks and returns their sum.
  template <class F>
  double weigh(F f) {
    crew_.each_block(vocabulary_, [&](const auto& scan, int block, Span span) {
      const double sum = f(scan, block, span);
      if (scan.leader()) sums_[block] = sum;
    });
    return total();
  }

  // What `sums_` has of the vocab_blocks.
  auto sums() const {
    return Scan::terms(vocabulary_.blocks, [this](int i) { return sums_[i]; });
  }
  double total() const { return sums().fold(0.0, plus); }

  // Adds the first `ties` of the ids that `sums_` counts in each vocab_block to the partials, whose
  // sum it returns.
  double add_ties(Partial* partials, double ties, double each) {
    auto add = [&] {
      auto count = [this](int i) { return sums_[i]; };
      Scan::chain(vocabulary_.blocks, 0.0, count, plus, [&](int i, double upto) {
        const double left = most(ties - (upto - count(i)), 0.0);
        partials[i].sum += least(count(i), left) * each;
      });
    };
    if constexpr (Crew::kStaged)
      crew_.share(1, [&](const Scan&, int) { add(); });
    else
      add();
    return terms(partials).fold(0.0, plus, [](Partial partial) { return partial.sum; });
  }

  // The first id at which the running sum of the masses exceeds r. of(masses) are those of the
  // vocab_blocks; crossing(scan, span, r) searches within one.
  template <class Masses, class F, class Of = Same>
  int find(const Masses& masses, double r, F crossing, Of of = {}) const {
    const Place place = masses.find(r, of);
    if (place.index < 0) return -1;
    return crew_.within(vocabulary_, place.index, [&](const auto& scan, Span span) {
      return crossing(scan, span, place.left);
    });
  }
  // The partials of a row, and the mass of each in its distribution.
  auto terms(const Partial* partials) const {
    return Scan::terms(vocabulary_.blocks, [partials](int i) { return partials[i]; });
  }
  static auto masses(const Distribution<T>& p) {
    return [&p](Partial partial) { return mass(p, partial); };
  }
  static double plus(double a, double b) { return a + b; }

  // The mass of a measured vocab_block in its row's distribution.
  static double mass(const Distribution<T>& p, Partial partial) {
    const double sum = partial.sum > 0 ? partial.sum : 0;
    return sum * exp2((double(partial.anchor) - p.top) * p.scale);
  }
  // 2^x, of a vocab_block's anchor or of a logit.
  static double exp2(double x) {
    if constexpr (Scan::kHeld > 0)  // as exactly as sums within a vocab_block
      return Scan::exp2(x);
    else
      return exp2_double(x);
  }
  template <class Scan>
  BLOCKDRAFT_SCAN static double mass_in(const Scan& scan, const Distribution<T>& p, Span span) {
    if (p.plain())
      return scan.sum(span, [&p](auto at, auto&) { return p.template weight<Kind::kPlain>(at); })
          .sum;
    return scan.sum(span, [&p](auto at, auto&) { return p.template weight<Kind::kAny>(at); }).sum;
  }
  template <class Scan>
  BLOCKDRAFT_SCAN static int crossing_in(const Scan& scan, const Distribution<T>& p, Span span,
                                         double r) {
    if constexpr (Scan::kHeld > 0)
      if (p.plain()) {
        auto plain = [p](auto at, auto&) { return p.template weight<Kind::kPlain>(at); };
        return scan.crossing(span, plain, r);
      }
    auto any = [&p](auto at, auto&) { return p.template weight<Kind::kAny>(at); };
    return scan.crossing(span, any, r);
  }

 private:
  float greatest_sum() const {
    return float(sums().fold(-__builtin_inf(), [](double a, double b) { return most(a, b); }));
  }

  struct Survey {
    float top;
    int rank;
  };
  // Of several vocab_blocks the least rank is that of all: numbers that are none spoil a row.
  static int rank(int status) { return status == kNotNumbers ? -1 : status; }
  static int status(int rank) { return rank < 0 ? int(kNotNumbers) : rank; }

  static Distribution<T> unmeasured(const Logits<T>& logits) {
    return {logits, 1, 0, -__builtin_inff(), -__builtin_inff(), INT32_MAX, Distribution<T>::kSpread,
            kEmpty};
  }

  // The distribution of a measured row before truncation.
  Distribution<T> measured(const Logits<T>& logits, const Sampling& sampling,
                           const Partial* partials) const {
    Distribution<T> p = unmeasured(logits);
    const auto own = terms(partials);
    const Survey row = own.fold(
        Survey{p.top, rank(kEmpty)},
        [](Survey a, Survey b) { return Survey{most(a.top, b.top), least(a.rank, b.rank)}; },
        [](Partial partial) { return Survey{partial.anchor, rank(partial.status)}; });
    p.status = status(row.rank);
    if (p.status != kFine) return p;
    p.top = row.top;
    if (sampling.temperature > 0) {
      p.scale = sampling.scale();
      p.sum = own.fold(0.0, plus, masses(p));
    } else {
      p.point = lowest(p, partials);
    }
    return p;
  }

  template <class Scan>
  static Partial measure_block(const Scan& scan, const Logits<T>& logits, const Sampling& sampling,
                               bool drawn, const Partial& start, Span span) {
    return sampling.temperature > 0 ? measure(scan, logits, sampling.scale(), start, span, drawn)
                                    : survey(scan, logits, span);
  }

  // The lowest id with the greatest logit, from the surveys of the vocab_blocks.
  int lowest(const Distribution<T>& p, const Partial* partials) const {
    const int block =
        Scan::first(vocabulary_.blocks, [&](int i) { return partials[i].anchor == p.top; });
    return crew_.within(vocabulary_, block,
                        [&](const auto& scan, Span span) { return first_equal(scan, p, span); });
  }
  template <class Scan>
  BLOCKDRAFT_SCAN static int first_equal(const Scan& scan, const Distribution<T>& p, Span span) {
    return scan.crossing(
        span,
        [&p](auto at, auto&) {
          return at.select(p.logits.load(at) == at.all(p.top), at.all(1.0f), at.all(0.0f));
        },
        0.5);
  }
  // The first id above `after` whose logit is x; -1: none.
  template <class Scan>
  BLOCKDRAFT_SCAN static int next_equal(const Scan& scan, const Logits<T>& logits, float x,
                                        int after, Span span) {
    auto equals = [&logits, x, after](auto at, auto&) {
      const auto one = at.select(logits.load(at) == at.all(x), at.all(1.0f), at.all(0.0f));
      return at.select(at.template id<T>() <= at.all(after), at.all(0.0f), one);
    };
    return scan.crossing(span, equals, 0.5);
  }
  // The greatest logit below x, or -inf.
  template <class Scan>
  BLOCKDRAFT_SCAN static float greatest_below(const Scan& scan, const Logits<T>& logits, float x,
                                              Span span) {
    auto raise = [&logits, x](auto at, auto& peak) {
      const auto logit = logits.load(at);
      peak = at.maximum(peak, at.select(logit < at.all(x), logit, at.all(-__builtin_inff())));
      return at.all(0.0f);
    };
    return scan.sum(span, raise).peak;
  }

  Crew& crew_;
  // A copy, since a pointer into the kernel body's object would keep that object out of registers
  // on a GPU.
  Vocabulary vocabulary_;
  double* sums_;
  ListMemory lists_;
};

}  // namespace blockdraft
