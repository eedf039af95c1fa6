// Scans for a CPU: one thread, a vector of ids at a time (16 with AVX-512, else 8), fp32 sums of kSegment ids that are added in
// double.
#pragma once

#include "host.h"
#include "scan.h"

namespace blockdraft::host {

#ifdef __AVX512F__
constexpr int kWide = 16;
#else
constexpr int kWide = kLanes;
#endif
typedef float wide __attribute__((vector_size(4 * kWide)));
typedef int32_t iwide __attribute__((vector_size(4 * kWide)));

template <class T>
wide to_wide(const T* p) {
#ifdef __AVX512F__
  if constexpr (sizeof(T) == 4) return (wide)_mm512_loadu_ps(p);
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  if constexpr (std::is_same_v<T, fp16>) return (wide)_mm512_cvtph_ps(half);
  return (wide)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
#else
  return to_float(p);
#endif
}

// What is common to whole and to ragged vectors of ids.
struct Lanes {
  using Float = wide;
  using Int = iwide;
  static wide all(float x) {
    wide out;
    for (int j = 0; j < kWide; ++j) out[j] = x;
    return out;
  }
  static iwide all(int x) { return iwide{} + x; }
  static wide select(iwide mask, wide a, wide b) { return mask ? a : b; }
  static wide maximum(wide a, wide b) {  // b where one is NaN
#if defined(__AVX512F__)
    return (wide)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
    return _mm256_max_ps(a, b);  // gcc does not see it behind a constant
#else
    return host::maximum(a, b);
#endif
  }
  static wide fma(wide a, wide b, wide c) {
    wide out;
    for (int j = 0; j < kWide; ++j) out[j] = __builtin_fmaf(a[j], b[j], c[j]);
    return out;
  }
  static wide exp2(wide x) {
#ifdef __AVX512F__
    const __m512 v = (__m512)x, whole = _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT);
    const wide r = (wide)_mm512_sub_ps(v, whole);
    const __mmask16 normal = _mm512_cmp_ps_mask(v, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);  // NaN, too
    return (wide)_mm512_maskz_scalef_ps(normal, (__m512)mantissa(r), whole);
#else
    const wide magic = all(12583039.0f);  // 1.5 * 2^23 + 127: adding it rounds, and leaves the exponent's bits lowest
    x = maximum(all(-127.0f), x);  // in this order a NaN stays
    const wide shifted = x + magic, r = x - (shifted - magic);
    return mantissa(r) * (wide)((iwide)shifted << 23);
#endif
  }

 private:
  static wide mantissa(wide r) {  // 2^r for |r| <= 1/2
    wide p = 1.3276803e-3f * r + 9.6755586e-3f;
    p = p * r + 5.5507120e-2f;
    p = p * r + 2.4022120e-1f;
    p = p * r + 6.9314694e-1f;
    return p * r + 1.0000001f;
  }
};

inline iwide ids_from(int first) {
  iwide out;
  for (int j = 0; j < kWide; ++j) out[j] = first + j;
  return out;
}

struct Whole : Lanes {
  int first;
  explicit Whole(int first) : first(first) {}
  template <class T>
  wide load(const T* p) const { return to_wide(p + first); }
  iwide id() const { return ids_from(first); }
};

struct Ragged : Lanes {
  int first;
  Span span;
  Ragged(int first, Span span) : first(first), span(span) {}
  template <class T>
  __attribute__((noinline)) wide load(const T* p) const {
    T part[kWide] = {};
    for (int j = 0; j < kWide; ++j)
      if (in(j)) part[j] = p[first + j];
    wide out = to_wide(part);
    for (int j = 0; j < kWide; ++j)
      if (!in(j)) out[j] = -INFINITY;
    return out;
  }
  iwide id() const { return ids_from(first); }

 private:
  bool in(int j) const { return first + j < span.stop && first + j != span.hole; }
};

class Scan : public Group {
  static constexpr int kSegment = 512;

 public:
  template <class F>
  static Total sum(Span span, F f) {
    wide peak = Lanes::all(-INFINITY);
    double total = 0;
    each_segment(span, [&](Span part) {
      total += segment(part, peak, f);
      return true;
    });
    float top = peak[0];
    for (int j = 1; j < kWide; ++j) top = peak[j] > top ? peak[j] : top;
    return {total, top};
  }

  template <class F>
  static int crossing(Span span, F f, double r) {
    wide peak{};
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
  static wide apply(Span part, int first, wide& peak, F f) {
    return whole(part, first, kWide) ? f(Whole(first), peak) : f(Ragged(first, part), peak);
  }

  template <class F>
  static double segment(Span part, wide& peak, F f) {
    wide sum{};
    if (whole(part, part.first, kSegment)) {
      wide top = peak;
#pragma GCC unroll 2
      for (int i = 0; i < kSegment; i += kWide) sum += f(Whole(part.first + i), top);
      peak = top;
    } else {
      for (int i = part.first; i < part.stop; i += kWide) sum += apply(part, i, peak, f);
    }
    double total = 0;
    for (int j = 0; j < kWide; ++j) total += sum[j];
    return total;
  }

  template <class F>
  static int walk(Span part, wide& peak, F f, double r) {
    int last = -1;
    for (int i = part.first; i < part.stop; i += kWide) {
      const wide mass = apply(part, i, peak, f);
      for (int j = 0; j < kWide; ++j) {
        if (!(mass[j] > 0)) continue;
        last = i + j;
        if ((r -= mass[j]) < 0) return last;
      }
    }
    return last;
  }
};

}  // namespace blockdraft::host
