// From a row of logits to the distribution that a token is drawn from: exclusion, temperature,
// min-p, top-k, top-p, in this order. The vocabulary is divided into vocab_blocks. Sums within one
// are fp32 (see tile/scan.h), those over several are double.
#pragma once

#include "ops/sampling/penalties.h"
#include "tile/scan.h"

namespace blockdraft {

// 2^x in double, for sums over vocab_blocks and for single tokens; 0 below -1022.
inline double exp2_double(double x) {
  if (!(x >= -1022)) return x < -1022 ? 0.0 : x;
  if (x > 1023) return __builtin_inf();
  const double shifted = x + 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer
  const double r = (x - (shifted - 6755399441055744.0)) * 0.6931471805599453;
  double p = 1.0;
  for (int n = 13; n > 0; --n) p = p * (r * (1.0 / n)) + 1.0;
  return p * __builtin_bit_cast(double, (__builtin_bit_cast(int64_t, shifted) + 1023) << 52);
}

// log2(x) to 1e-13 for x in the range of fp32, by one Newton step from the fp32 logarithm.
inline double log2_double(double x) {
  const double y = __builtin_log2f(float(x));
  if (!(x > 0) || !(x < __builtin_inf())) return y;
  return y + (x * exp2_double(-y) - 1) * kLog2e;
}

// The ids that may have probability (all below `size` but `mask`), in `blocks` vocab_blocks of
// `block` ids.
struct Vocabulary {
  int size, mask, block, blocks;

  Vocabulary(int size, int mask, int block)
      : size(size), mask(mask), block(block), blocks(ceil_div(size, block)) {}

  bool has(int id) const { return id >= 0 && id < size && id != mask; }
  Span span(int i) const { return {i * block, least(size, (i + 1) * block), mask}; }
  Span all() const { return {0, size, mask}; }
};

// A row of logits, or the blend weight * row + (1 - weight) * other of two rows, after penalties;
// -inf for ids that are not allowed.
template <class T>
struct Logits {
  const T *row, *other;  // other: null for one row
  float weight;
  const uint32_t* allowed;  // bits of ids; null: all are
  Penalties penalties{};

  bool plain() const { return !other && !allowed && !penalties.touched; }
  // Whether there is nothing but a mask.
  bool masked() const { return !other && allowed && !penalties.touched; }
  // Whether all logits are of type T.
  bool stored() const { return !other && !penalties.touched; }

  template <class At>
  typename At::Float load(At at) const {
    auto x = at.load(row);
    if (other) x = blend<At>(x, at.load(other), at.all(weight), at.all(1 - weight));
    if (penalties.touched) x = penalties.applied<T>(at, x);
    if (allowed) x = at.select(at.template bits<T>(allowed), x, at.all(-__builtin_inff()));
    return x;
  }
  template <class Scan>
  float at(int id) const {
    if (allowed && !Scan::bit(allowed, id)) return -__builtin_inff();
    float x = Scan::value(row + id);
    if (other) x = __builtin_fmaf(weight, x, (1 - weight) * Scan::value(other + id));
    return penalties.touched ? penalties.template one<Scan>(x, id) : x;
  }

 private:
  // An explicit fma, so that the bits do not depend on how the compiler contracts each copy.
  template <class At, class Float>
  static Float blend(Float x, Float y, Float w, Float v) {
    return At::fma(w, x, v * y);
  }
};

// By the share of the greatest weight (min-p), the number (top-k) or the mass (top-p) of the ids.
enum class Cut { kShare, kCount, kMass };

// How a request's logits become a distribution.
struct Sampling {
  double temperature;  // 0: all mass on the greatest logit
  int top_k;           // 0: off
  double top_p;        // 1: off
  double min_p;        // 0: off

  bool truncates() const { return top_k > 0 || top_p < 1 || min_p > 0; }
  bool cuts(Cut kind, int vocab) const {
    return kind == Cut::kShare   ? min_p > 0
           : kind == Cut::kCount ? top_k > 0 && top_k < vocab
                                 : top_p < 1;
  }
  // The factor from logits to exponents of 2. It is bounded so that it fits into a float: lower
  // temperatures than 1.5e-37 act as 1.5e-37.
  double scale() const { return most(least(kLog2e / temperature, 1e37), 1e-30); }
};

// Maps floats to integers of the same order; -0 counts as 0.
inline uint32_t image(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x == 0 ? 0.0f : x);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
inline float number(uint32_t image) {
  return __builtin_bit_cast(float, image >> 31 ? image & 0x7fffffffu : ~image);
}

enum Status { kFine = 0, kNotNumbers = 1, kEmpty = 2 };

// What a scan has to know of a distribution: all logits of one row as they are, those that a mask
// allows, of these the ones from a certain logit on, or anything.
enum class Kind { kPlain, kSimple, kCut, kAny };

// Kept ids have the weights 2^((x - top) * scale), divided by their sum; or all mass is on one id.
template <class T>
struct Distribution {
  Logits<T> logits;
  double scale, sum;
  float top, cut;  // an id is kept if its logit is above the cut,
  int tie;         // or at the cut and the id is at most `tie`
  int point;       // the id that has all mass, or one of these:
  int status;

  static constexpr int kSpread = -2, kNowhere = -1;  // mass by weights; no id has mass

  // Other logits' part of the same distribution.
  template <class S>
  Distribution<S> over(const Logits<S>& logits) const {
    return {logits, scale, sum, top, cut, tie, point, status};
  }

  bool truncated() const { return cut != -__builtin_inff(); }
  bool plain() const { return logits.plain() && !truncated(); }
  bool simple() const { return (logits.plain() || logits.masked()) && kept_by_logit(); }
  // Whether of equal logits all are kept, or none.
  bool kept_by_logit() const { return !truncated() || tie == INT32_MAX || tie < 0; }
  // The same within a span, by logits alone if `tie` is not in it.
  Distribution within(Span span) const {
    Distribution out = *this;
    if (tie >= span.stop - 1) out.tie = INT32_MAX;
    if (tie < span.first) out.tie = -1;
    return out;
  }
  float least_kept() const { return tie < 0 ? number(image(cut) + 1) : cut; }

  // Of a logit x, if it is kept.
  double weight_of(float x) const { return exp2_double((double(x) - top) * scale); }
  template <class At>
  [[gnu::always_inline]] typename At::Float weight_of(At at, typename At::Float x) const {
    return at.exp2(x - at.all(top), scale);
  }

  // Inlined wherever it stands, as At::exp2 is.
  template <Kind kKind, class At>
  [[gnu::always_inline]] typename At::Float weight(At at) const {
    if constexpr (kKind != Kind::kAny) {
      const auto x = at.load(logits.row);
      auto own = weight_of(at, x);
      if constexpr (kKind == Kind::kCut)
        own = at.select(x >= at.all(least_kept()), own, at.all(0.0f));
      if constexpr (kKind != Kind::kPlain)
        if (logits.allowed) return at.template keep<T>(own, logits.allowed);
      return own;
    }
    const auto x = logits.load(at);
    const auto kept =
        (x > at.all(cut)) | ((x == at.all(cut)) & (at.template id<T>() <= at.all(tie)));
    return at.select(kept, weight_of(at, x), at.all(0.0f));
  }

  template <class Scan>
  double probability(const Vocabulary& vocabulary, int id) const {
    const bool reads = vocabulary.has(id) && point == kSpread;
    return probability(vocabulary, id, reads ? logits.template at<Scan>(id) : 0);
  }
  // Of an id whose logit is x.
  double probability(const Vocabulary& vocabulary, int id, float x) const {
    if (!vocabulary.has(id)) return 0;
    if (point != kSpread) return id == point;
    if (!(x > cut) && !(x == cut && id <= tie)) return x == x ? 0 : x;
    return weight_of(x) / sum;
  }
  template <class Scan>
  float log_probability(int id) const {  // if point is kSpread
    const float x = logits.template at<Scan>(id);
    if (!(x > cut) && !(x == cut && id <= tie)) return -__builtin_inff();
    return least(float(((double(x) - top) * scale - log2_double(sum)) / kLog2e), 0.0f);
  }
};

}  // namespace blockdraft
