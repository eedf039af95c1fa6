// Lists of a row's logits, in which a single thread finds a cut (Crew::kLists): the row itself is
// read once or twice, however the search goes. A sample tells which logits to list.
#pragma once

#include "ops/sampling/measure.h"

namespace blockdraft {

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
  // The next number below that of x; of 0 it is not -0.
  float below(float x) const { return number(at(x) - (at(x) == at(0) ? 2 : 1)); }
};

// The sum of f(at, x) over the logits x above a number.
template <class Scan, class T, class F>
double sum_above(const Scan& scan, const Logits<T>& logits, float number, Span span, F f) {
  return sum_of(scan, logits, span, [number, f](auto at, auto x) {
    return at.select(x > at.all(number), f(at, x), at.all(0.0f));
  });
}

// The mass of the ids with a logit above x.
template <class Scan, class T>
BLOCKDRAFT_SCAN double mass_above(const Scan& scan, const Distribution<T>& p, float x, Span span,
                                  bool exactly = true) {
  return mass_by(p.scale, p.top, exactly, [&](auto weight, double shift) {
    return shift * sum_above(scan, p.logits, x, span, weight);
  });
}
// Their number.
template <class Scan, class T>
BLOCKDRAFT_SCAN double count_above(const Scan& scan, const Distribution<T>& p, float x, Span span) {
  return sum_above(scan, p.logits, x, span, [](auto at, auto) { return at.all(1.0f); });
}

// Between which a cut is: above `low`, at most `high`.
struct Limits {
  float low, high;
};

// Memory for a row's lists.
struct ListMemory {
  static constexpr int kOfBlock = 1024 - kListSlack;  // logits of a vocab_block that can be listed
  static constexpr int kRoom = 24576;                 // of a row
  static constexpr int kNumbers = 1 << 16;
  static constexpr int kBlockStride = kOfBlock + kListSlack, kListStride = kRoom + kListSlack;

  float* found;      // [blocks][kBlockStride]; null: no memory
  int* starts;       // [blocks + 1]
  double* above;     // [blocks] the mass of the ids above the guess
  float* list;       // [3][kListStride]
  uint32_t* counts;  // [parts][kNumbers] of logits of 16 bits
  int parts;         // that threads may fill at the same time
};

// The logits above `low` up to `high`, each with the number of its ids and their mass.
struct Listing {
  float *logits, *counts, *masses;
  const int* starts;  // of the vocab_blocks; null: they are mixed
  int size;
  float low, high;
  float greatest;
  double mass_above, count_above;  // of the ids above `high`; their mass by vocab_block in partials

  Span span() const { return {0, size, -1}; }
};

// The sum of the values whose keys are above `low` and at most `high`.
template <class Scan>
BLOCKDRAFT_SCAN double sum_between(const Scan& scan, const float* keys, const float* values,
                                   float low, float high, Span span) {
  auto value = [=](auto at, auto&) {
    const auto key = at.load(keys);
    const auto in = (key > at.all(low)) & (key <= at.all(high));
    return at.select(in, at.load(values), at.all(0.0f));
  };
  return scan.sum(span, value).sum;
}

// The logits above `low` up to `high`, or what is no number.
template <class Scan, class T>
BLOCKDRAFT_SCAN int collect(const Scan& scan, const Logits<T>& logits, Span span, float low,
                            float high, float* out) {
  constexpr int kRoom = ListMemory::kOfBlock;
  if (logits.plain())
    return scan.collect(
        span, [row = logits.row](auto at) { return at.load(row); }, low, high, out, kRoom);
  return scan.collect(span, [&](auto at) { return logits.load(at); }, low, high, out, kRoom);
}

// The weights of a distribution's ids that are above `low`.
template <class Scan, class T>
BLOCKDRAFT_SCAN int collect_weights(const Scan& scan, const Distribution<T>& p, Span span,
                                    float low, float* out, int room) {
  auto weight = [&p](auto at) { return at.exp2(p.logits.load(at) - at.all(p.top), p.scale); };
  return scan.collect(span, weight, low, __builtin_inff(), out, room);
}

template <class Sampler, class T>
class Lister {
  using Scan = typename Sampler::Scan;

 public:
  // `partials` are overwritten.
  Lister(Sampler& sampler, Distribution<T>& p, Partial* partials)
      : sampler_(sampler),
        vocabulary_(sampler.vocabulary()),
        memory_(sampler.lists()),
        grid_(Grid::of(p.logits)),
        p_(p),
        partials_(partials) {
    float* const list = memory_.list;
    constexpr int kStride = ListMemory::kListStride;
    listing_ = {list, list + kStride, list + 2 * kStride, memory_.starts, 0, 0, 0, 0, 0, 0};
  }

  static constexpr double kDoubt = 1;

  float low() const { return listing_.low; }
  float high() const { return least(listing_.high, listing_.greatest); }
  float guess() const { return __builtin_inff(); }
  // The mass, or the number, of the ids with a logit above x, which is not outside of the list.
  double above(float x, bool by_mass) const {
    return (by_mass ? listing_.mass_above : listing_.count_above) +
           between(by_mass ? listing_.masses : listing_.counts, x, __builtin_inff());
  }
  double equal(float x) const { return between(listing_.counts, Grid{0}.below(x), x); }
  // The list, if it is sorted by vocab_blocks.
  const Listing* by_blocks() const { return listing_.starts ? &listing_ : nullptr; }

  // Lists the greatest logits, among them all that min-p and top-k may keep, and makes them the
  // distribution of a row that was not measured. False if that cannot be.
  bool greatest(const Sampling& sampling) {
    const bool counts = sampling.top_k > 0 && sampling.top_k < vocabulary_.size;
    if (!counts && !(sampling.min_p > 0)) return false;
    float of_rank = -__builtin_inff(), of_share = of_rank;
    if (vocabulary_.size > ListMemory::kOfBlock) {
      const double gain = sample(false, of_rank);
      const double expected = sampling.top_k / gain;
      const double rank = expected + 4 * __builtin_sqrt(expected) + 4;
      if (counts && rank < listing_.size) of_rank = ranked(rank);
      if (sampling.min_p > 0) {
        const double least = log2_double(sampling.min_p) / sampling.scale();
        of_share = grid_.below(float(listing_.greatest + least));
      }
      const float low = most(of_rank, of_share);
      if (!(low > -__builtin_inff() && low < __builtin_inff())) return false;
      if (gain * number_above(low) > ListMemory::kRoom / 2) return false;
    }
    if (!read(most(of_rank, of_share), __builtin_inff(), true)) return false;
    p_.status = listing_.size ? kFine : kEmpty;
    for (int i = 0; i < listing_.size; ++i)
      if (!(listing_.logits[i] < __builtin_inff())) p_.status = kNotNumbers;
    if (p_.status == kFine) {
      p_.top = listing_.greatest;
      p_.sum = weigh();
    }
    return p_.status == kNotNumbers || !(of_rank > of_share) || listing_.size >= sampling.top_k;
  }

  // Measures the row and, by the same reading, the mass of the ids above a logit that is probably
  // above the cut of top-p and not far from it, and the greatest logits. False if there is none.
  bool measure(const Sampling& sampling) {
    if (!p_.logits.plain() || vocabulary_.size <= ListMemory::kOfBlock) return false;
    const Partial start = survey_start(Scan(), p_.logits, vocabulary_);
    if (start.status != kFine) return false;
    sample(false, -__builtin_inff());
    p_.top = listing_.greatest;
    const double share = sampling.top_p - kMargin * least(sampling.top_p, 1 - sampling.top_p);
    const double mass = share * weigh();
    float below = listing_.greatest - float(32 / p_.scale), above = listing_.greatest;
    for (int i = 0; i < kGuesses; ++i) {
      const float x = below + (above - below) / 2;
      (between(listing_.masses, x, __builtin_inff()) > mass ? below : above) = x;
    }
    guess_ = grid_.number(grid_.at(above));
    if (!(guess_ < listing_.greatest)) return false;
    above_guess_ = sampler_.weigh([&](const auto& scan, int block, Span span) {
      const Sums masses = masses_above(scan, p_.logits.row, p_.scale, start.anchor, span, guess_);
      if (masses.sum < 0x1p100) {
        partials_[block] = {masses.sum, start.anchor, kFine};
        return memory_.above[block] = masses.other;
      }
      partials_[block] = measure_whole(scan, p_.logits, p_.scale, start, span, false);
      return __builtin_inf();
    });
    return true;
  }

  // Lists the logits around the one above which ids have a mass, or number, of `limit` and below
  // which a mass of `tail` is left, unless the sample deceives: with more `doubt`, more of them.
  // The root of a sum of n terms has the standard deviation of half the root of one term, whatever
  // n is. For a mass, the greatest of the terms counts.
  bool around(Cut kind, double limit, double tail, double doubt, Limits) {
    const bool by_mass = kind == Cut::kMass;
    float from = p_.cut, upto = __builtin_inff();
    const double share = limit * (1 - 1e-5);  // sums are rounded
    const float peak = by_mass ? peak_of(share) : -__builtin_inff();
    peaked_ = p_.weight_of(peak) >= limit ? share : 0;
    if (peaked_ > 0) {
      from = grid_.below(peak);
    } else if (vocabulary_.size > ListMemory::kOfBlock) {
      const float lowest = by_mass && p_.truncated() ? float(p_.weight_of(p_.cut))
                           : by_mass                 ? 0
                                                     : from;
      const double gain = sample(by_mass, lowest);
      const double root = __builtin_sqrt(by_mass ? most(tail, 0.0) : limit);
      const double step = doubt * __builtin_sqrt(by_mass ? gain : 2 * gain);
      // How far the sum at x is beyond the limit, in the direction in which x has to go up.
      auto beyond = [&](uint32_t coarse) {
        const float x = number(coarse << kCoarse);
        if (!by_mass) return __builtin_sqrt(gain * number_above(x)) - root;
        const double rest = between(listing_.logits, 0, x);
        return (root - __builtin_sqrt(gain * rest)) / __builtin_sqrt(double(x));
      };
      const double smallest = tail / vocabulary_.size / 16;
      const uint32_t first = image(by_mass ? float(smallest) : from) >> kCoarse;
      const bool known = by_mass && above_guess_ < limit;
      const float weight = float(p_.weight_of(guess_));
      auto last = [&](float x) { return most(first, image(x) >> kCoarse) + 1; };
      const uint32_t low = turn(first, last(known ? weight : listing_.greatest),
                                [&](uint32_t x) { return beyond(x) > step; });
      auto logit = [&](uint32_t coarse) {
        const float x = number(coarse << kCoarse);
        return by_mass ? float(p_.top + log2_double(double(x)) / p_.scale) : x;
      };
      // Of weights below `smallest` there are not enough, whatever the sample is.
      if (by_mass || low > first) from = most(from, grid_.below(logit(low)));
      if (known && guess_ > from &&
          gain * between(listing_.counts, number(low << kCoarse), weight) <
              7 * ListMemory::kRoom / 8) {
        upto = guess_;
      } else {
        const uint32_t end = last(listing_.greatest);
        const uint32_t high = turn(low, end, [&](uint32_t x) { return beyond(x) > -step; }) + 1;
        if (high < end) upto = grid_.number(grid_.at(logit(high)) + 1);
      }
    }
    if (!read(from, upto, by_mass)) return false;
    weigh(listing_);
    return true;
  }

  // The listed logits above `low` up to `high` and their masses, in a list of their own. Of size 0 if
  // there are too many.
  Listing part(float low, float high) const {
    if (!listing_.starts) return {};
    const int room = vocabulary_.blocks * ListMemory::kBlockStride / 2 - kListSlack;
    Listing part = listing_;
    part.logits = memory_.found;
    part.masses = memory_.found + room + kListSlack;
    auto logit = [&](auto at) { return at.load(listing_.logits); };
    const int size = Scan::collect(listing_.span(), logit, low, high, part.logits, room);
    part.size = size <= room ? size : 0;
    weigh(part);
    return part;
  }

  // Lists all logits, if they are of 16 bits, by counting how often each number occurs. False if
  // there are too many.
  bool everything() {
    if constexpr (sizeof(T) == 2)
      if (p_.logits.stored()) return tally();
    return false;
  }

 private:
  bool tally() {
    constexpr int kNumbers = ListMemory::kNumbers;
    const Vocabulary parts(vocabulary_.size, vocabulary_.mask,
                           ceil_div(vocabulary_.blocks, memory_.parts) * vocabulary_.block);
    sampler_.crew().each_block(parts, [&](const auto& scan, int part, Span span) {
      uint32_t* const counts = memory_.counts + part * kNumbers;
      __builtin_memset(counts, 0, kNumbers * sizeof *counts);
      scan.count(span, p_.logits.row, p_.logits.allowed, counts);
    });
    uint32_t* const counts = memory_.counts;
    for (int part = 1; part < parts.blocks; ++part)
      for (int i = 0; i < kNumbers; ++i) counts[i] += counts[part * kNumbers + i];
    listing_.starts = nullptr;
    listing_.low = -__builtin_inff();
    listing_.high = __builtin_inff();
    listing_.greatest = -__builtin_inff();
    listing_.mass_above = listing_.count_above = 0;
    int size = 0;
    for (int bits = 0; bits < kNumbers; ++bits) {
      if (!counts[bits]) continue;
      const float x = Scan::value(reinterpret_cast<const T*>(&bits));
      if (x == -__builtin_inff()) continue;
      if (size == ListMemory::kRoom) return false;
      listing_.greatest = most(listing_.greatest, x);
      listing_.logits[size] = x;
      listing_.counts[size++] = float(counts[bits]);
    }
    listing_.size = size;
    weigh();
    for (int i = 0; i < size; ++i) listing_.masses[i] *= listing_.counts[i];
    return true;
  }

  static constexpr int kSampled = 64;  // ids of each vocab_block
  static constexpr int kCoarse = 17;   // low bits of an image that a guess ignores
  // How far above the cut a guess is, as a share of the mass above or below the cut: about twice the
  // error of a sampled sum. The guess is as fine as 2^-9 of the range of logits that matter.
  static constexpr double kMargin = 0.2;
  static constexpr int kGuesses = 9;

  // The greatest logit, if its weight can be `mass`; otherwise -inf. Few vocab_blocks have as much
  // above the guess as to hold it.
  float peak_of(double mass) {
    if (!(above_guess_ >= mass && above_guess_ < __builtin_inf())) return -__builtin_inff();
    return sampler_.greatest_of([&](const auto& scan, int block, Span span) {
      if (memory_.above[block] < mass) return -__builtin_inff();
      return survey(scan, p_.logits, span).anchor;
    });
  }

  double between(const float* values, float low, float high) const {
    return sum_between(Scan(), listing_.logits, values, low, high, listing_.span());
  }
  double number_above(float x) const { return between(listing_.counts, x, __builtin_inff()); }

  // The last place at which `holds` is true, if it is at low and is not at high.
  template <class Holds>
  static uint32_t turn(uint32_t low, uint32_t high, Holds holds) {
    while (high - low > 1) {
      const uint32_t middle = low + (high - low) / 2;
      (holds(middle) ? low : high) = middle;
    }
    return low;
  }

  // A number above which about `rank` of the listed ones are.
  float ranked(double rank) const {
    const uint32_t first = image(-__builtin_inff()) >> kCoarse;
    const uint32_t last = (image(listing_.greatest) >> kCoarse) + 1;
    auto holds = [&](uint32_t x) { return number_above(number(x << kCoarse)) >= rank; };
    return grid_.below(number(turn(first, last, holds) << kCoarse));
  }

  // Lists the logits, or the weights, of the first ids of each vocab_block. Returns how many ids
  // stand behind each of them.
  double sample(bool by_mass, float low) {
    const double ids = sampler_.weigh([&](const auto& scan, int block, Span span) {
      const Span first{span.first, least(span.stop, span.first + kSampled), span.hole};
      float* const out = memory_.found + block * ListMemory::kBlockStride;
      memory_.starts[block + 1] =
          by_mass ? collect_weights(scan, p_, first, low, out, ListMemory::kOfBlock)
                  : collect(scan, p_.logits, first, low, __builtin_inff(), out);
      return double(first.stop - first.first);
    });
    join();
    return vocabulary_.size / ids;
  }

  // Joins what was found of the vocab_blocks. False if it is too much.
  bool join() {
    int* const starts = memory_.starts;
    starts[0] = listing_.size = 0;
    for (int block = 0; block < vocabulary_.blocks; ++block) {
      const int count = starts[block + 1], start = starts[block];
      if (count > ListMemory::kOfBlock || start + count > ListMemory::kRoom) return false;
      __builtin_memcpy(listing_.logits + start, memory_.found + block * ListMemory::kBlockStride,
                       count * sizeof(float));
      starts[block + 1] = start + count;
    }
    listing_.size = starts[vocabulary_.blocks];
    for (int i = 0; i < listing_.size; ++i) listing_.counts[i] = 1;
    const Logits<float> listed{listing_.logits, nullptr, 1, nullptr};
    listing_.greatest = survey(Scan(), listed, listing_.span()).anchor;
    return true;
  }

  // A reading of the row. False if there are too many between low and high.
  bool read(float low, float high, bool by_mass) {
    const bool known = by_mass && high == guess_ && above_guess_ < __builtin_inf();
    const bool all = high == __builtin_inff();
    listing_.count_above = sampler_.weigh([&](const auto& scan, int block, Span span) {
      if (peaked_ > 0 && memory_.above[block] < peaked_) {
        memory_.starts[block + 1] = 0;
        partials_[block] = {0, 0, kFine};
        return 0.0;
      }
      float* const out = memory_.found + block * ListMemory::kBlockStride;
      memory_.starts[block + 1] = collect(scan, p_.logits, span, low, high, out);
      const double above = all     ? 0
                           : known ? memory_.above[block]
                                   : mass_above(scan, p_, high, span, false);
      partials_[block] = {above, 0, kFine};
      return all || by_mass ? 0.0 : count_above(scan, p_, high, span);
    });
    listing_.mass_above = 0;
    for (int i = 0; i < vocabulary_.blocks; ++i) listing_.mass_above += partials_[i].sum;
    listing_.low = low;
    listing_.high = high;
    return join();
  }

  // The masses of the listed ids, and their sum.
  double weigh() {
    weigh(listing_);
    return between(listing_.masses, -__builtin_inff(), __builtin_inff());
  }
  void weigh(const Listing& listing) const {
    auto weight = [&](auto at) {
      return at.exp2(at.load(listing.logits) - at.all(p_.top), p_.scale);
    };
    Scan::collect(listing.span(), weight, -1, __builtin_inff(), listing.masses, listing.size);
  }

  Sampler& sampler_;
  const Vocabulary& vocabulary_;
  ListMemory memory_;
  Grid grid_;
  Distribution<T>& p_;
  Partial* partials_;
  Listing listing_;
  float guess_ = 0;                       // a logit
  double above_guess_ = __builtin_inf();  // the mass above it
  double peaked_ = 0;  // vocab_blocks with less mass above the guess are not read
};

}  // namespace blockdraft
