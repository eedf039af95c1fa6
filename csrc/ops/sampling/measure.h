// What a vocab_block adds to its row's normaliser.
#pragma once

#include "ops/sampling/split.h"

namespace blockdraft {

// The sum of 2^((x - anchor) * scale). `survey` computes no sum; its anchor is the greatest logit.
struct Partial {
  double sum;
  float anchor;
  int status;
};

// The greatest logit of a span (-inf: none) and whether NaN or +inf is among them.
template <class Scan, class T>
BLOCKDRAFT_SCAN Partial survey(const Scan& scan, const Logits<T>& logits, Span span) {
  const Total total = scan.sum(span, [&](auto at, auto& peak) {
    const auto x = logits.load(at);
    peak = at.maximum(peak, x);
    return at.select(x < at.all(__builtin_inff()), at.all(0.0f), at.all(1.0f));
  });
  return {0, total.peak,
          total.sum > 0                     ? kNotNumbers
          : total.peak == -__builtin_inff() ? kEmpty
                                            : kFine};
}

// The survey of the first few ids of a row, allowed or not. The greatest of their logits is the
// anchor of all its vocab_blocks.
template <class Scan, class T>
Partial survey_start(const Scan& scan, const Logits<T>& logits, const Vocabulary& vocabulary) {
  const Span first{0, least(64, vocabulary.size), vocabulary.mask};
  return survey(scan, Logits<T>{logits.row, logits.other, logits.weight, nullptr}, first);
}

// The sum of f(at, x) over the logits x, if f(at, -inf) is 0. A row with a mask is read as one
// without; then what is not allowed does not count.
template <class Scan, class T, class F>
BLOCKDRAFT_SCAN double sum_of(const Scan& scan, const Logits<T>& logits, Span span, F f) {
  if (logits.plain())
    return scan.sum(span, [row = logits.row, f](auto at, auto&) { return f(at, at.load(row)); })
        .sum;
  if constexpr (Scan::kSplits)
    if (logits.masked())
      return scan.template sum_kept<T>(
          span, logits.allowed, [row = logits.row, f](auto at) { return f(at, at.load(row)); });
  return scan.sum(span, [&logits, f](auto at, auto&) { return f(at, logits.load(at)); }).sum;
}
// Likewise of weights, which at.exp2 makes.
template <class Scan, class T, class F>
BLOCKDRAFT_SCAN double weight_of(const Scan& scan, const Logits<T>& logits, Span span, F weight) {
  if constexpr (Scan::kSplits)
    if (logits.masked())
      return scan.template sum_weights<T>(
          span, logits.allowed,
          [row = logits.row, weight](auto at) { return weight(at, at.load(row)); });
  return sum_of(scan, logits, span, weight);
}

// The sum of f(at, x, other) over the logits x, and what f adds to `other`.
template <class Scan, class T, class F>
Sums sums_of(const Scan& scan, const Logits<T>& logits, Span span, F f) {
  if constexpr (Scan::kHeld > 0)
    if (logits.plain()) return scan.rows_sums(span, f, logits.row);
  return scan.sums(span,
                   [&logits, f](auto at, auto& other) { return f(at, logits.load(at), other); });
}

// sum(weight, shift) for a weight(at, x) of 2^((x - anchor) * scale) / shift; if not `exactly`, with
// a relative error of 4e-7.
template <class Sum>
auto mass_by(double scale, float anchor, bool exactly, Sum sum) {
  const float factor = float(scale);
  const float constant = anchor * factor;
  // One multiply-add for each exponent. The rounding error of its constant is a common factor,
  // which is corrected afterwards, unless the constant is so large that the error matters.
  if (exactly || !(constant < 0x1p24f && constant > -0x1p24f))
    return sum([=](auto at, auto x) { return at.exp2(x - at.all(anchor), scale); }, 1.0);
  return sum([=](auto at, auto x) { return at.exp2(at.fma(x, at.all(factor), at.all(-constant))); },
             exp2_double(constant - double(anchor) * factor));
}
template <class Scan, class T>
double mass_from(const Scan& scan, const Logits<T>& logits, double scale, float anchor, Span span,
                 bool exactly) {
  return mass_by(scale, anchor, exactly, [&](auto weight, double shift) {
    return shift * weight_of(scan, logits, span, weight);
  });
}

// The mass of all ids, and of those with a logit above x, of a row as it is stored.
template <class Scan, class T>
BLOCKDRAFT_SCAN Sums masses_above(const Scan& scan, const T* row, double scale, float anchor,
                                  Span span, float x) {
  return mass_by(scale, anchor, false, [&](auto weight, double shift) {
    const Sums raw = scan.sums(span, [=](auto at, auto& above) {
      const auto logit = at.load(row);
      const auto own = weight(at, logit);
      above += at.select(logit > at.all(x), own, at.all(0.0f));
      return own;
    });
    return Sums{shift * raw.sum, shift * raw.other};
  });
}

// The partial of a vocab_block that a scan holds, with the vocab_block's own anchor; false if it is
// none of numbers.
template <class Scan, class T>
bool measure_held(const Scan& scan, const Logits<T>& logits, double scale, Span span, bool drawn,
                  Partial& out) {
  if (!logits.plain() || span.stop - span.first > Scan::kHeld) return false;
  auto held = scan.hold(span, logits.row);
  const float top = held.peak();
  const float factor = float(scale);
  auto exact = [top, scale](auto at, auto x) { return at.exp2(x - at.all(top), scale); };
  auto quick = [top, factor](auto at, auto x) {
    return at.exp2((x - at.all(top)) * at.all(factor));
  };
  out = {drawn ? scan.held_sum(exact, held) : scan.held_sum(quick, held), top, kFine};
  return out.sum < 0x1p100;  // not NaN, which even infinite logits give
}

// The partial of a vocab_block, in one pass unless a logit is too far above the anchor of `start`,
// the survey of the row's first ids. `drawn`: a token is drawn by these sums, so their terms must
// be as exact as those of the search within the vocab_block.
template <class Scan, class T>
Partial measure_whole(const Scan& scan, const Logits<T>& logits, double scale, const Partial& start,
                      Span span, bool drawn) {
  if constexpr (Scan::kProducts) {  // cheaper without an anchor, if the sum is in fp32's range
    if (!drawn && (logits.plain() || logits.masked())) {
      auto product = [factor = float(scale)](auto at, auto x) {
        return at.exp2_product(x, factor);
      };
      const double sum = weight_of(scan, logits, span, product);
      if (sum > 0x1p-60 && sum < 0x1p100) return {sum, 0, kFine};
    }
  }
  if (start.status == kFine) {
    const double sum = mass_from(scan, logits, scale, start.anchor, span, drawn);
    // Neither NaN nor so large that a ratio of sums could overflow; nor so small that the anchor,
    // which may be that of another row of logits, is far above the others.
    const bool as_stored = !logits.allowed && !logits.penalties.touched;
    if (sum < 0x1p100 && (as_stored || sum > 0x1p-60)) return {sum, start.anchor, kFine};
  }
  Partial out = survey(scan, logits, span);
  if (out.status == kFine) out.sum = mass_from(scan, logits, scale, out.anchor, span, drawn);
  return out;
}

template <class Scan, class T>
BLOCKDRAFT_SCAN Partial measure(const Scan& scan, const Logits<T>& logits, double scale,
                                const Partial& start, Span span, bool drawn) {
  if constexpr (Scan::kSplits)
    if (logits.penalties.touched && !logits.other && start.status == kFine) {
      Split split(logits.penalties, span);
      if (split.fits()) {
        const double sum = mass_by(scale, start.anchor, drawn, [&](auto weight, double shift) {
          float values[Split::kRoom];
          const double rest = weight_of(scan, split.rest(logits), span, weight);
          const Logits<float> list = split.list(scan, logits, values);
          return shift * (rest + weight_of(scan, list, split.listed(), weight));
        });
        if (sum < 0x1p100 && sum > 0x1p-60) return {sum, start.anchor, kFine};
      }
    }
  return measure_whole(scan, logits, scale, start, span, drawn);
}

}  // namespace blockdraft
