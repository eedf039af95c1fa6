// Scans for a CPU: one thread, 8 ids at a time, fp32 sums of kSegment ids that are added in double.
#pragma once

#include "host.h"
#include "scan.h"

namespace blockdraft::host {

// What is common to whole and to ragged vectors of ids.
struct Lanes {
  using Float = vec;
  using Int = ivec;
  static vec all(float x) { return splat(x); }
  static ivec all(int x) { return ivec{x, x, x, x, x, x, x, x}; }
  static vec select(ivec mask, vec a, vec b) { return mask ? a : b; }
  static vec maximum(vec a, vec b) {  // b where one is NaN
#ifdef __AVX__
    return _mm256_max_ps(a, b);  // gcc does not see it behind a constant
#else
    return host::maximum(a, b);
#endif
  }
  static vec fma(vec a, vec b, vec c) {
    vec out;
    for (int j = 0; j < kLanes; ++j) out[j] = __builtin_fmaf(a[j], b[j], c[j]);
    return out;
  }
  static vec exp2(vec x) {
    const vec magic = splat(12583039.0f);  // 1.5 * 2^23 + 127: adding it rounds, and leaves the exponent's bits lowest
    x = maximum(splat(-127.0f), x);  // in this order a NaN stays
    const vec shifted = x + magic, r = x - (shifted - magic);
    vec p = 1.3276803e-3f * r + 9.6755586e-3f;
    p = p * r + 5.5507120e-2f;
    p = p * r + 2.4022120e-1f;
    p = p * r + 6.9314694e-1f;
    p = p * r + 1.0000001f;
    return p * (vec)((ivec)shifted << 23);
  }
};

struct Whole : Lanes {
  int first;
  explicit Whole(int first) : first(first) {}
  template <class T>
  vec load(const T* p) const { return to_float(p + first); }
  ivec id() const { return ivec{0, 1, 2, 3, 4, 5, 6, 7} + first; }
};

struct Ragged : Lanes {
  int first;
  Span span;
  Ragged(int first, Span span) : first(first), span(span) {}
  template <class T>
  __attribute__((noinline)) vec load(const T* p) const {
    vec out = splat(-INFINITY);
    for (int j = 0; j < kLanes; ++j)
      if (first + j < span.stop && first + j != span.hole) {
        T one[kLanes] = {p[first + j]};
        out[j] = to_float(one)[0];
      }
    return out;
  }
  ivec id() const { return ivec{0, 1, 2, 3, 4, 5, 6, 7} + first; }
};

class Scan : public Group {
  static constexpr int kSegment = 512;

 public:
  template <class F>
  static Total sum(Span span, F f) {
    vec peak = splat(-INFINITY);
    double total = 0;
    each_segment(span, [&](Span part) {
      total += segment(part, peak, f);
      return true;
    });
    float top = peak[0];
    for (int j = 1; j < kLanes; ++j) top = peak[j] > top ? peak[j] : top;
    return {total, top};
  }

  template <class F>
  static int crossing(Span span, F f, double r) {
    vec peak{};
    Span last{0, 0, -1};  // segment with a positive sum
    int found = -1;
    each_segment(span, [&](Span part) {
      const double sum = segment(part, peak, f);
      if (sum > 0) last = part;
      if (sum > r) found = walk(part, peak, f, r);
      r -= sum;
      return found < 0;
    });
    return found < 0 ? walk(last, peak, f, INFINITY) : found;
  }

  template <class T>
  static float value(const T* p) {
    const T one[kLanes] = {*p};
    return to_float(one)[0];
  }

 private:
  template <class F>
  static void each_segment(Span span, F f) {
    for (int first = span.first; first < span.stop; first += kSegment)
      if (!f(Span{first, least(first + kSegment, span.stop), span.hole})) return;
  }

  static bool whole(Span part, int first, int count) {
    return part.stop - first >= count && (part.hole < first || part.hole >= first + count);
  }

  template <class F>
  static vec apply(Span part, int first, vec& peak, F f) {
    return whole(part, first, kLanes) ? f(Whole(first), peak) : f(Ragged(first, part), peak);
  }

  template <class F>
  static double segment(Span part, vec& peak, F f) {
    vec sum{};
    if (whole(part, part.first, kSegment)) {
      vec top = peak;
#pragma GCC unroll 2
      for (int i = 0; i < kSegment; i += kLanes) sum += f(Whole(part.first + i), top);
      peak = top;
    } else {
      for (int i = part.first; i < part.stop; i += kLanes) sum += apply(part, i, peak, f);
    }
    double total = 0;
    for (int j = 0; j < kLanes; ++j) total += sum[j];
    return total;
  }

  template <class F>
  static int walk(Span part, vec& peak, F f, double r) {
    int last = -1;
    for (int i = part.first; i < part.stop; i += kLanes) {
      const vec mass = apply(part, i, peak, f);
      for (int j = 0; j < kLanes; ++j) {
        if (!(mass[j] > 0)) continue;
        last = i + j;
        if ((r -= mass[j]) < 0) return last;
      }
    }
    return last;
  }
};

}  // namespace blockdraft::host
