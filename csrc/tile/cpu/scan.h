// Scans of a CPU: one thread, a vector of ids at a time (16 with AVX-512, else 8). Sums over
// kSegment ids are fp32 and are added in double.
#pragma once

#include <cmath>

#include "tile/cpu/group.h"
#include "tile/scan.h"

namespace blockdraft::cpu {

// What all vectors of ids share.
struct Lanes {
  using Float = wide;
  using Int = iwide;
  static wide all(float x) { return splat_wide(x); }
  static iwide all(int x) { return iwide{} + x; }
  template <class Params>
  static const Params& reload(const Params* p) {
    return *p;
  }
  static wide select(iwide mask, wide a, wide b) { return mask ? a : b; }
  static wide maximum(wide a, wide b) { return maximum_wide(a, b); }
  static wide fma(wide a, wide b, wide c) { return multiply_add(a, b, c); }
  // Inlined wherever they stand: the compiler may find that a scan has too many of them, and a call
  // costs as much as the work.
  [[gnu::always_inline]] static wide exp2(wide x, double scale) { return cpu::exp2(x, scale); }
#ifdef __AVX512F__
  static wide exp2_product(wide x, float factor) { return cpu::exp2_product(x, factor); }
#endif
  [[gnu::always_inline]] static wide exp2(wide x) {
#ifdef __AVX512F__
    return cpu::exp2(x);
#else
    return cpu::exp2(minimum_wide(all(128.0f), x));
#endif
  }
};

// Whether each of the lowest kWide bits is set, or each `step`th from `first` on.
inline iwide lanes_of(uint32_t bits, int first = 0, int step = 1) {
  uwide lane;
  for (int j = 0; j < kWide; ++j) lane[j] = 1u << (first + j * step);
  return (iwide)(((uwide{} + bits) & lane) != 0);
}
// The bits of the ids from `first` on, which is a multiple of kWide.
inline uint32_t bits_from(const uint32_t* words, int64_t first) {
  return words[first / 32] >> (first % 32);
}
#if defined(__AVX2__) && !defined(__AVX512F__)
// What a byte of bits selects, as one operand of an instruction.
struct OfByte {
  alignas(sizeof(wide)) uint32_t lanes[256][kWide] = {};   // all bits, or none
  alignas(sizeof(wide)) uint32_t shifts[256][kWide] = {};  // to a float's exponent, or out
  constexpr OfByte() {
    for (int byte = 0; byte < 256; ++byte)
      for (int j = 0; j < kWide; ++j) {
        lanes[byte][j] = -(byte >> j & 1);
        shifts[byte][j] = byte >> j & 1 ? 23 : 32;
      }
  }
};
inline constexpr OfByte kOfByte;

inline uwide of_byte(const uint32_t (&table)[256][kWide], const uint32_t* words, int64_t place) {
  uwide out;
  std::memcpy(&out, table[reinterpret_cast<const uint8_t*>(words)[place]], sizeof out);
  return out;
}
#endif

// x in the lanes of the bits from kWide * `place` on, else 0.
[[gnu::always_inline]] inline wide kept(wide x, const uint32_t* words, int64_t place) {
#if defined(__AVX512F__)
  return (wide)_mm512_maskz_mov_ps(reinterpret_cast<const __mmask16*>(words)[place], (__m512)x);
#elif defined(__AVX2__)
  return (wide)((uwide)x & of_byte(kOfByte.lanes, words, place));
#else
  return lanes_of(bits_from(words, place * kWide)) ? x : wide{};
#endif
}

inline iwide ids_from(int64_t first) {
  iwide out;
  for (int j = 0; j < kWide; ++j) out[j] = int(first) + j;
  return out;
}

// x, but f(value, id) in the lanes that are marked.
template <class F>
__attribute__((noinline)) wide revised(wide x, iwide marked, iwide id, F f) {
  for (int j = 0; j < kWide; ++j)
    if (marked[j]) x[j] = f(x[j], id[j]);
  return x;
}
template <class T, class At, class Ids, class F>
wide revise(const At& at, wide x, const uint32_t* words, Ids ids, int n, F f) {
  iwide marked = at.template bits<T>(words);
  if (n > 0) {
    const iwide id = at.template id<T>();
    for (int i = 0; i < n; ++i) marked |= id == Lanes::all(ids()[i]);
  }
  return lane_bits(marked) ? revised(x, marked, at.template id<T>(), f) : x;
}

constexpr int kListed = 64;  // ids whose bits fill a word

// Hardware prefetching stops at the end of each page. Prefetching one line of the next page keeps it
// going; more lines would disturb it. `bytes`: from this address to the next one of its row.
[[gnu::always_inline]] inline void prefetch(const void* p, int bytes) {
  constexpr int page = 4096;
  if (int(reinterpret_cast<uintptr_t>(p) & (page - 1)) < bytes)
    __builtin_prefetch(static_cast<const char*>(p) + page);
}

struct Whole : Lanes {
  int64_t first;
  explicit Whole(int64_t first) : first(first) {}
  template <class>
  iwide bits(const uint32_t* words) const {
    return lanes_of(bits_from(words, first));
  }
  template <class>
  wide keep(wide x, const uint32_t* words) const {
    return kept(x, words, first / kWide);
  }
  template <class T, class Ids, class F>
  wide revise(wide x, const uint32_t* words, Ids ids, int n, F f) const {
    return cpu::revise<T>(*this, x, words, ids, n, f);
  }
  template <class T>
  wide load(const T* p) const {
    return to_wide(p + first);
  }
  template <class>
  iwide id() const {
    return ids_from(first);
  }
};

// As Whole, of a long row: part j of the kListed ids from `group` on, which is a multiple of that.
struct Next : Whole {
  bool leads;
  int64_t place;  // first / kWide
  Next(int64_t group, int j)
      : Whole(group + j * kWide), leads(j == 0), place(uint64_t(group) / kWide + j) {}
  template <class>
  wide keep(wide x, const uint32_t* words) const {
    return kept(x, words, place);
  }
  template <class T>
  wide load(const T* p) const {
    if (leads) prefetch(p + first, kListed * sizeof(T));
    return to_wide(p + first);
  }
};

// Likewise, where exponentials are 0 for ids whose bits are not set, and infinity instead of NaN for
// the others: then NaN of an id that is not wanted does no harm.
struct Weighed : Next {
  const uint32_t* words;
  Weighed(Next at, const uint32_t* words) : Next(at), words(words) {}
#if defined(__AVX2__) && !defined(__AVX512F__)
  // The shift that makes a power of 2 also makes it 0.
  [[gnu::always_inline]] wide power(wide shifted) const {
    return (wide)_mm256_sllv_epi32((__m256i)shifted,
                                   (__m256i)of_byte(kOfByte.shifts, words, place));
  }
  [[gnu::always_inline]] wide exp2(wide x) const {
    return exp2_within(maximum_wide(all(-127.0f), minimum_wide(x, all(128.0f))),
                       [this](wide shifted) { return power(shifted); });
  }
  [[gnu::always_inline]] wide exp2(wide x, double scale) const {
    const float factor = float(scale), rest = float(scale - factor);
    x = maximum_wide(all(-127 / factor), minimum_wide(x, all(128 / factor)));
    return exp2_within(x, factor, rest, [this](wide shifted) { return power(shifted); });
  }
#else
  [[gnu::always_inline]] wide exp2(wide x) const { return kept(Lanes::exp2(x), words, place); }
  [[gnu::always_inline]] wide exp2(wide x, double scale) const {
    return kept(Lanes::exp2(x, scale), words, place);
  }
#ifdef __AVX512F__
  wide exp2_product(wide x, float factor) const {
    return kept(Lanes::exp2_product(x, factor), words, place);
  }
#endif
#endif
};

// One of two halves of 2 * kWide ids. For bf16 these are the even and the odd ids, which a shift or
// a mask converts to floats.
struct Half : Lanes {
  int first;
  bool upper;
  Half(int first, bool upper) : first(first), upper(upper) {}
  template <class T>
  wide load(const T* p) const {
    if (sizeof(T) * kWide >= 64 || !upper) prefetch(p + first + upper * kWide, 64);
    if constexpr (!std::is_same_v<T, bf16>) return to_wide(p + first + upper * kWide);
    uwide both;
    std::memcpy(&both, p + first, sizeof both);
    return (wide)(upper ? both & 0xffff0000u : both << 16);
  }
  template <class T>
  iwide id() const {
    if constexpr (!std::is_same_v<T, bf16>) return ids_from(first + upper * kWide);
    return ids_from(0) * 2 + (first + upper);
  }
  template <class T>
  iwide bits(const uint32_t* words) const {
    if constexpr (!std::is_same_v<T, bf16>)
      return lanes_of(bits_from(words, first + upper * kWide));
    return lanes_of(bits_from(words, first), upper, 2);
  }
  template <class T>
  wide keep(wide x, const uint32_t* words) const {
    return bits<T>(words) ? x : wide{};
  }
  template <class T, class Ids, class F>
  wide revise(wide x, const uint32_t* words, Ids ids, int n, F f) const {
    return cpu::revise<T>(*this, x, words, ids, n, f);
  }
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
  template <class>
  iwide id() const {
    return ids_from(first);
  }
  template <class>
  iwide bits(const uint32_t* words) const {
    uint32_t within = 0;
    for (int j = 0; j < kWide; ++j) within |= uint32_t(in(j)) << j;
    return lanes_of(bits_from(words, first) & within);
  }
  template <class T>
  wide keep(wide x, const uint32_t* words) const {
    return Lanes::select(bits<T>(words), x, wide{});
  }
  template <class T, class Ids, class F>
  wide revise(wide x, const uint32_t* words, Ids ids, int n, F f) const {
    return cpu::revise<T>(*this, x, words, ids, n, f);
  }

 private:
  bool in(int j) const { return first + j < span.stop && first + j != span.hole; }
};

class Scan : public Group, public SerialScan {
  static constexpr int kSegment = 1024, kShort = kSegment / 4;

 public:
  static constexpr bool kReloads = false;
  static constexpr bool kSplits = true;
#ifdef __AVX512F__
  static constexpr bool kProducts = true;
#else
  static constexpr bool kProducts = false;
#endif

  static bool bit(const uint32_t* words, int id) { return words[id / 32] >> (id % 32) & 1; }
  template <class Params>
  static const Params& reload(const Params* p) {
    return *p;
  }

  template <class F>
  static Total sum(Span span, F f) {
    wide peak = Lanes::all(-INFINITY);
    double lanes[kWide] = {};
    each_segment(span, [&](Span part) {
      float sums[kWide];
      const wide sum = segment(part, peak, f);
      std::memcpy(sums, &sum, sizeof sums);
      for (int j = 0; j < kWide; ++j) lanes[j] += sums[j];
      return true;
    });
    Total total{0, -INFINITY};
    for (int j = 0; j < kWide; ++j) {
      total.sum += lanes[j];
      total.peak = peak[j] > total.peak ? peak[j] : total.peak;
    }
    return total;
  }

  template <class F>
  static Sums sums(Span span, F f) {
    wide peak{};
    double lanes[2][kWide] = {};
    each_segment<kShort>(span, [&](Span part) {
      wide other{};  // one sum of as many terms as each of the four has in a segment of `sum`
      const wide sum = segment<kShort>(part, peak, [&](auto at, wide&) { return f(at, other); });
      float sums[2][kWide];
      std::memcpy(sums[0], &sum, sizeof sum);
      std::memcpy(sums[1], &other, sizeof other);
      for (int i = 0; i < 2; ++i)
        for (int j = 0; j < kWide; ++j) lanes[i][j] += sums[i][j];
      return true;
    });
    Sums total{0, 0};
    for (int j = 0; j < kWide; ++j) {
      total.sum += lanes[0][j];
      total.other += lanes[1][j];
    }
    return total;
  }

  template <class T, class F>
  static double sum_kept(Span span, const uint32_t* words, F f) {
    return sum_kept<T>(span, words, f, [=](auto at) { return at.template keep<T>(f(at), words); });
  }
  template <class T, class F>
  static double sum_weights(Span span, const uint32_t* words, F f) {
    return sum_kept<T>(span, words, f, [=](auto at) {
      if constexpr (std::is_same_v<decltype(at), Next>)
        return f(Weighed(at, words));
      else
        return at.template keep<T>(f(at), words);
    });
  }

  template <class F>
  static int crossing(Span span, F f, double r) {
    wide peak{};
    Span last{0, 0, -1};  // segment with a positive sum
    int found = -1;
    each_segment(span, [&](Span part) {
      const wide lanes = segment(part, peak, f);
      double sum = 0;
      for (int j = 0; j < kWide; ++j) sum += lanes[j];
      if (sum > 0) last = part;
      if (sum > r) found = walk(part, peak, f, r);
      r -= sum;
      return found < 0;
    });
    return found < 0 ? walk(last, peak, f, INFINITY) : found;
  }

  template <class F>
  static int collect(Span span, F f, float low, float high, float* out, int room) {
    auto in = [low = Lanes::all(low), high = Lanes::all(high)](wide x) {
      return ~((x <= low) | (x > high));
    };
    int count = 0;
    int first = span.first;
    for (; first < span.stop && whole(span, first, kListed); first += kListed) {
      wide values[kListed / kWide];
      iwide any{};
#pragma GCC unroll 8
      for (int j = 0; j < kListed / kWide; ++j) {
        values[j] = f(Half(first + j / 2 * 2 * kWide, j % 2));
        any |= in(values[j]);
      }
      if (!lane_bits(any)) continue;
#pragma GCC unroll 8
      for (int j = 0; j < kListed / kWide; ++j)
        count += pack(out + least(count, room), values[j], lane_bits(in(values[j])));
    }
    for (; first < span.stop; first += kWide) {
      const wide x = whole(span, first, kWide) ? f(Whole(first)) : f(Ragged(first, span));
      count += pack(out + least(count, room), x, lane_bits(in(x)));
    }
    return count;
  }

  template <class T>
  static void count(Span span, const T* p, const uint32_t* words, uint32_t* counts) {
    constexpr int kWord = 32;
    for (int first = span.first; first < span.stop; first += kWord) {
      const T* const own = p + first;
      const int ids = least(kWord, span.stop - first);
      uint32_t bits = words ? words[first / kWord] : ~0u;
      if (span.hole - first >= 0 && span.hole - first < kWord) bits &= ~(1u << (span.hole - first));
      if (ids < kWord) bits &= (1u << ids) - 1;
      if (bits == ~0u)
        for (int i = 0; i < kWord; ++i) ++counts[own[i].bits];
      else
        for (; bits; bits &= bits - 1) ++counts[own[__builtin_ctz(bits)].bits];
    }
  }

  // out[i] = f(at) for i < n, which is a multiple of kWide.
  template <class F>
  static void map(int n, F f, float* out) {
    for (int i = 0; i < n; i += kWide) store_wide(out + i, f(Whole(i)));
  }

  template <class T>
  static float value(const T* p) {
    return cpu::value(*p);
  }

 private:
  // `kept`: f, but 0 for ids whose bits are not set.
  template <class T, class F, class Kept>
  static double sum_kept(Span span, const uint32_t* words, F f, Kept kept) {
    uint32_t all = ~0u;
    for (int i = span.first / 32; i < ceil_div(span.stop, 32); ++i) all &= words[i];
    wide peak{};
    double lanes[kWide] = {};
    each_segment(span, [&](Span part) {
      const wide sum = ~all ? kept_segment(part, words, kept)
                            : segment(part, peak, [&](auto at, wide&) { return f(at); });
      for (int j = 0; j < kWide; ++j) lanes[j] += sum[j];
      return true;
    });
    double total = 0;
    for (double lane : lanes) total += lane;
    return total;
  }

  template <int kLength = kSegment, class F>
  static void each_segment(Span span, F f) {
    for (int first = span.first; first < span.stop; first += kLength)
      if (!f(Span{first, least(first + kLength, span.stop), span.hole})) return;
  }

  static bool whole(Span part, int first, int count) {
    return part.stop - first >= count && (part.hole < first || part.hole >= first + count);
  }

  template <class F>
  static wide apply(Span part, int first, wide& peak, F f) {
    return whole(part, first, kWide) ? f(Whole(first), peak) : f(Ragged(first, part), peak);
  }

  template <int kLength = kSegment, class F>
  static wide segment(Span part, wide& peak, F f) {
    wide sums[4] = {};  // of fewer terms each, which round less
    if (whole(part, part.first, kLength)) {
      wide top = peak;
      for (int i = part.first; i < part.first + kLength; i += 4 * kWide)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) sums[j] += f(Half(i + j / 2 * 2 * kWide, j % 2), top);
      peak = top;
    } else {
      for (int i = part.first, j = 0; i < part.stop; i += kWide, j = (j + 1) % 4)
        sums[j] += apply(part, i, peak, f);
    }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }

  // Long runs of ids without a bit are not looked at.
  template <class Kept>
  static wide kept_segment(Span part, const uint32_t* words, Kept kept) {
    wide sums[4] = {};
    if (whole(part, part.first, kSegment)) {
      auto bits_of = [own = words + part.first / 32](int i) {
        uint64_t bits;
        std::memcpy(&bits, own + i / 32, sizeof bits);
        return bits;
      };
      int none = 0, mixed = 0;
      for (int i = 0; i < kSegment; i += kListed) {
        none += bits_of(i) == 0;
        mixed += bits_of(i) + 1 > 1;
      }
      const bool runs = none > 0 && mixed <= 3;  // many short ones cost more than they save
      for (int i = 0, stop = kSegment; i < kSegment; i = stop) {
        const bool any = !runs || bits_of(i);
        if (runs)
          for (stop = i + kListed; stop < kSegment && !bits_of(stop) == !any;) stop += kListed;
        if (!any) continue;
        const int64_t end = part.first + stop;
        for (int64_t first = part.first + i; first < end; first += kListed)
#pragma GCC unroll 8
          for (int j = 0; j < kListed / kWide; ++j) sums[j % 4] += kept(Next(first, j));
      }
    } else {
      for (int i = part.first, j = 0; i < part.stop; i += kWide, j = (j + 1) % 4)
        sums[j] += whole(part, i, kWide) ? kept(Whole(i)) : kept(Ragged(i, part));
    }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
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

static_assert(ScanTarget<Scan>);

}  // namespace blockdraft::cpu
