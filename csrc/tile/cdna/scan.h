// Scans for CDNA: by one wave, with 8 consecutive ids for each lane, so that loads are 16 bytes.
// Sums within a wave need neither LDS nor barriers.
#pragma once

#include "tile/cdna/group.h"
#include "tile/scan.h"

namespace blockdraft::cdna {

typedef float float8 __attribute__((ext_vector_type(8)));
typedef int int8v __attribute__((ext_vector_type(8)));

constexpr int kIds = 8, kStep = kWave * kIds;  // of a lane, of a wave

// The ids first .. first + 7 of a lane.
struct At {
  using Float = float8;
  int first;
  Span span;

  static float8 all(float x) { return float8(x); }
  static int8v all(int x) { return int8v(x); }
  template <class Params>
  static Params reload(const Params*) {
    return cdna::reload<Params>();
  }
  template <class>
  int8v id() const {
    return int8v{0, 1, 2, 3, 4, 5, 6, 7} + first;
  }
  template <class>
  int8v bits(const uint32_t* words) const {
    return (int8v((int)byte(words)) & int8v{1, 2, 4, 8, 16, 32, 64, 128}) != 0;
  }
  template <class T, class Ids, class F>
  float8 revise(float8 x, const uint32_t* words, Ids ids, int n, F f) const {
    uint32_t marked = byte(words);
    for (int i = 0; i < n; ++i) {
      const uint32_t place = ids()[i] - first;
      if (place < uint32_t(kIds)) marked |= 1u << place;
    }
    marked &= (1u << most(least(span.stop - first, kIds), 0)) - 1;
#pragma clang loop unroll(disable)
    for (; marked; marked &= marked - 1) {  // one copy of f; x stays in registers
      const int i = __builtin_ctz(marked);
      float value = x[0];
#pragma unroll
      for (int j = 1; j < kIds; ++j) value = i == j ? x[j] : value;
      value = f(value, first + i);
#pragma unroll
      for (int j = 0; j < kIds; ++j) x[j] = i == j ? value : x[j];
    }
    return x;
  }
  static float8 select(int8v mask, float8 a, float8 b) { return mask ? a : b; }
  static float8 maximum(float8 a, float8 b) { return a > b ? a : b; }  // b if either is NaN
  static float8 fma(float8 a, float8 b, float8 c) { return __builtin_elementwise_fma(a, b, c); }
  static float8 exp2(float8 x) {
    float8 out;
#pragma unroll
    for (int i = 0; i < kIds; ++i) out[i] = __builtin_amdgcn_exp2f(x[i]);
    return out;
  }

  static float8 exp2(float8 x, double scale) {
    const float factor = float(scale);
    const float8 product = x * factor, power = exp2(product);
    float8 rest = fma(x, all(float(scale - factor)), fma(x, all(factor), -product));
#pragma unroll
    for (int i = 0; i < kIds; ++i)
      rest[i] = __builtin_amdgcn_fmed3f(rest[i], -1, 1);  // or NaN, inf
    return fma(power, rest * 0.693147181f, power);
  }

  template <class T>
  float8 load(const T* p) const {
    float8 out;
    if (span.stop - first >= kIds && (span.hole < first || span.hole >= first + kIds)) {
      out = floats(raw(p + first));
    } else {
#pragma unroll
      for (int i = 0; i < kIds; ++i) {
        const bool in = first + i < span.stop && first + i != span.hole;
        const float x = one(p + (in ? first + i : span.first));
        out[i] = in ? x : -__builtin_inff();
      }
    }
    return out;
  }

  // Adds those x to a wave's list whose mask is set: in turn one of each lane.
  template <class List>
  static void append(List& list, float8 x, int8v mask) {
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < kIds; ++i) bits |= mask[i] & 1 << i;
    while (const uint64_t some = __builtin_amdgcn_ballot_w64(bits != 0)) {
      const int place = __builtin_amdgcn_mbcnt_hi(
          uint32_t(some >> 32), __builtin_amdgcn_mbcnt_lo(uint32_t(some), list.size));
      if (bits && place < List::kRoom) list.out[place] = element(x, __builtin_ctz(bits));
      list.size += __builtin_popcountll(some);
      bits &= bits - 1;
    }
  }
  static float element(float8 x, int i) {
    const bool second = i & 1;
    float out[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) out[j] = second ? x[2 * j + 1] : x[2 * j];
    const float low = i & 2 ? out[1] : out[0], high = i & 2 ? out[3] : out[2];
    return i & 4 ? high : low;
  }

  // Loads from global memory, by scalar types, since copying a struct would use a flat pointer.
  static float one(const float* p) { return *(const __attribute__((address_space(1))) float*)p; }
  static float one(const bf16* p) {
    return __builtin_bit_cast(float, uint32_t(*(const __attribute__((address_space(1))) uint16_t*)p)
                                         << 16);
  }
  static uint32_t word(const uint32_t* words, int i) {
    return ((const __attribute__((address_space(1))) uint32_t*)words)[i];
  }
  static float one(const fp16* p) {
    return float(*(const __attribute__((address_space(1))) _Float16*)p);
  }

  typedef uint32_t words __attribute__((ext_vector_type(4), aligned(2)));
  typedef float floats4 __attribute__((ext_vector_type(4), aligned(4)));
  typedef _Float16 half8 __attribute__((ext_vector_type(8)));

  // Eight logits at once, and what they are.
  static float8 raw(const float* p) {
    const auto* four = (const __attribute__((address_space(1))) floats4*)p;
    float8 out;
    out.lo = four[0];
    out.hi = four[1];
    return out;
  }
  static words raw(const bf16* p) { return *(const __attribute__((address_space(1))) words*)p; }
  static half8 raw(const fp16* p) {
    return __builtin_bit_cast(half8, *(const __attribute__((address_space(1))) words*)p);
  }
  static float8 floats(float8 x) { return x; }
  static float8 floats(half8 x) { return __builtin_convertvector(x, float8); }
  static float8 floats(words pairs) {
    float8 out;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[2 * i] = __builtin_bit_cast(float, pairs[i] << 16);
      out[2 * i + 1] = __builtin_bit_cast(float, pairs[i] & 0xffff0000u);
    }
    return out;
  }
  // The inverse of `floats`.
  static float8 stored(float8 x, float8) { return x; }
  static half8 stored(float8 x, half8) { return __builtin_convertvector(x, half8); }
  static words stored(float8 x, words pairs) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float low = x[2 * i], high = x[2 * i + 1];  // a bit_cast of x[i] would take x[0]
      pairs[i] = __builtin_bit_cast(uint32_t, low) >> 16 |
                 (__builtin_bit_cast(uint32_t, high) & 0xffff0000u);
    }
    return pairs;
  }

 private:
  // The bits of the lane's ids; any for ids beyond the span, whose words may not exist.
  uint32_t byte(const uint32_t* words) const {  // first is a multiple of 8
    return word(words, least(first, span.stop - 1) / 32) >> (first % 32) & 0xff;
  }
};

// x, of which the compiler knows nothing: what depends on it is not kept in registers, computed
// before the loops around.
inline int opaque(int x) {
#ifdef __HIP_DEVICE_COMPILE__
  asm volatile("" : "+v"(x));
#endif
  return x;
}

// x of a lane that a data-parallel move names; 0 where there is none, or in rows beyond the mask.
template <int kMove, int kRows = 15, class N>
N moved(N x) {
  typedef int words __attribute__((ext_vector_type(sizeof(N) / 4)));
  words bits = __builtin_bit_cast(words, x);
#pragma unroll
  for (unsigned i = 0; i < sizeof(N) / 4; ++i)
    bits[i] = __builtin_amdgcn_update_dpp(0, bits[i], kMove, kRows, 15, true);
  return __builtin_bit_cast(N, bits);
}
// x of a lane that is the same for all.
template <class N>
N of_lane(N x, int lane) {
  typedef int words __attribute__((ext_vector_type(sizeof(N) / 4)));
  words bits = __builtin_bit_cast(words, x);
#pragma unroll
  for (unsigned i = 0; i < sizeof(N) / 4; ++i) bits[i] = __builtin_amdgcn_readlane(bits[i], lane);
  return __builtin_bit_cast(N, bits);
}
// x of all lanes, joined: within quads, eights and rows of 16, then the four rows.
template <class N, class Join>
N joined(N x, Join join) {
  x = join(x, moved<0xb1>(x));   // the other one of two
  x = join(x, moved<0x4e>(x));   // the other two of four
  x = join(x, moved<0x141>(x));  // from the other end of eight
  x = join(x, moved<0x140>(x));  // from the other end of a row
  return join(join(of_lane(x, 0), of_lane(x, 16)), join(of_lane(x, 32), of_lane(x, 48)));
}
// The sum over this lane and those before.
inline double running(double x) {
  x += moved<0x111>(x);
  x += moved<0x112>(x);
  x += moved<0x114>(x);
  x += moved<0x118>(x);
  x += moved<0x142, 10>(x);  // the end of a row to the next one
  x += moved<0x143, 12>(x);  // the end of the second row to the third and fourth
  return x;
}

// What term(i) gives for i < n. Each lane of a wave holds two, which are asked for together.
template <class Term>
class TermsOf {
 public:
  TermsOf(int n, Term term) : n_(n), term_(term), first_(at(0)), second_(at(kWave)) {}

  template <class N, class Join, class Of = Same>
  N fold(N none, Join join, Of of = {}) const {
    N out = none;
    each_turn([&](int i, auto own) {
      if (i < n_) out = join(out, of(own));
      return false;
    });
    return joined(out, join);
  }
  template <class Of = Same>
  Place find(double r, Of of = {}) const {
    Place place{-1, __builtin_inf()};  // rounding: the last one that has any
    each_turn([&](int i, auto term) {
      const double own = i < n_ ? of(term) : 0.0;
      const double upto = running(own);
      const uint64_t crossed = __builtin_amdgcn_ballot_w64(upto > r && own > 0);
      if (crossed) {
        const int winner = __builtin_ctzll(crossed);
        place = {of_lane(i, winner), r - of_lane(upto - own, winner)};
        return true;
      }
      const uint64_t positive = __builtin_amdgcn_ballot_w64(own > 0);
      if (positive) place.index = of_lane(i, 63 - __builtin_clzll(positive));
      r -= of_lane(upto, kWave - 1);
      return false;
    });
    return place;
  }

 private:
  static constexpr int kHeld = 2 * kWave;

  static int lane() { return thread_index() & (kWave - 1); }
  auto at(int first) const { return term_(least(first + lane(), n_ - 1)); }
  template <class F>
  void each_turn(F f) const {
    auto own = first_;
#pragma clang loop unroll(disable)
    for (int first = 0; first < least(n_, kHeld); first += kWave) {
      if (f(first + lane(), own)) return;
      own = second_;
    }
    for (int first = kHeld; first < n_; first += kWave)
      if (f(first + lane(), at(first))) return;
  }

  int n_;
  Term term_;
  decltype((*static_cast<Term*>(nullptr))(0)) first_, second_;
};

// Some logits of a row in the registers of a wave, as they were loaded: every kApart ids, a step.
template <class T, int kSteps, int kApart>
struct Held {
  decltype(At::raw((const T*)nullptr)) raw[kSteps];
  float rest;  // of a lane: a logit of the span's ragged end
  At at;       // the lane's first ids

  int whole() const { return (at.span.stop - at.span.first) / kIds * kIds + at.span.first; }
  bool ragged() const { return whole() < at.span.stop; }
  // Makes those -inf that are not in the span: once all has arrived, before anything is asked.
  void mask() {
    const Span& span = at.span;
    if (span.stop - span.first == kSteps * kApart &&
        !(span.hole >= span.first && span.hole < span.stop))
      return;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      float8 own = x(step);
      const int id = at.first + step * kApart;
#pragma unroll
      for (int i = 0; i < kIds; ++i)
        own[i] = id + i < whole() && id + i != span.hole ? own[i] : -__builtin_inff();
      raw[step] = At::stored(own, raw[step]);
    }
  }

  float8 x(int step) const {
    auto own = raw[step];
#ifdef __HIP_DEVICE_COMPILE__
    asm volatile("" : "+v"(own));  // lest floats, which are more, are made earlier or kept
#endif
    return At::floats(own);
  }
  float peak() {
    mask();
    float8 peak = x(0);
#pragma unroll
    for (int i = 1; i < kSteps; ++i) peak = __builtin_elementwise_max(peak, x(i));
    float top = rest;
#pragma unroll
    for (int i = 0; i < kIds; ++i) top = top > peak[i] ? top : peak[i];
    return joined(top, [](float a, float b) { return a > b ? a : b; });
  }
};

// What the waves of a crew share.
template <int kWaves>
struct CrewMemory {
  double totals[kWaves];
  float peaks[kWaves];
  int found[kWaves], ends[kWaves];
  int before;
};

// Numbers of a wave, on their way from those of its threads that found them.
struct WaveList {
  static constexpr int kOfLane = 2 * kIds;
  static constexpr int kRoom = kOfLane * kWave - 32;  // two crews fit into a compute unit's LDS

  float* out;
  int size;
};
template <int kWaves>
struct HoldingMemory : CrewMemory<kWaves> {
  float listed[kWaves][WaveList::kRoom];
};

// By kWaves waves of a workgroup, of which each takes the same share of every kWaves * kStep ids.
template <int kWaves>
class ScanOf {
 public:
  static constexpr bool kProducts = false, kReloads = true, kSplits = false;
  static constexpr int kHeldSteps = 8, kHeld = kHeldSteps * kStep;

  ScanOf() = default;
  explicit ScanOf(CrewMemory<kWaves>* memory) : memory_(memory) {}

  template <class Params>
  static Params reload(const Params*) {
    return cdna::reload<Params>();
  }

  static bool leader() { return thread_index() % (kWaves * kWave) == 0; }

  template <class F>
  Total sum(Span span, F f) const {
    float8 sum = float8(0.0f), peak = float8(-__builtin_inff());
    const int own = opaque(lane() * kIds);
    for (int base = span.first + wave() * kStep; base < span.stop; base += kWaves * kStep)
      sum += f(At{base + own, span}, peak);
    float top = -__builtin_inff();
#pragma unroll
    for (int i = 0; i < kIds; ++i) top = __builtin_fmaxf(top, peak[i]);
    return exchanged(
        {joined(total(sum), plus), joined(top, [](float a, float b) { return a > b ? a : b; })});
  }

  template <class F>
  Sums sums(Span span, F f) const {
    float8 other = float8(0.0f);
    const double own = sum(span, [&](At at, float8&) { return f(at, other); }).sum;
    return {own, exchanged_sum(other)};
  }

  template <class F>
  int crossing(Span span, F f, double r) const {
    float8 peak;
    int last = -1;
    for (int base = span.first; base < span.stop; base += kWaves * kStep) {
      const int first = base + wave() * kStep;
      const float8 mass = f(At{first + opaque(lane() * kIds), span}, peak);
      const double own = total(mass);
      int own_last = -1;
#pragma unroll
      for (int i = 0; i < kIds; ++i) own_last = mass[i] > 0 ? i : own_last;
      double upto = running(own);
      double all = of_lane(upto, kWave - 1);
      const uint64_t positive = __builtin_amdgcn_ballot_w64(own > 0);
      const int highest = positive ? 63 - __builtin_clzll(positive) : 0;
      const int end = first + highest * kIds + of_lane(own_last, highest);
      if constexpr (kWaves == 1) {
        last = positive ? end : last;
      } else {
        CrewMemory<kWaves>& m = *memory_;
        if (lane() == 0) m.totals[wave()] = all, m.ends[wave()] = positive ? end : -1;
        barrier();
        all = 0;
#pragma unroll
        for (int i = 0; i < kWaves; ++i) {
          upto += i < wave() ? m.totals[i] : 0.0;
          all += m.totals[i];
          last = m.ends[i] >= 0 ? m.ends[i] : last;
        }
      }
      int found = -1;
      const uint64_t crossed = __builtin_amdgcn_ballot_w64(upto > r && own > 0);
      if (crossed) {
        const double left = r - (upto - own);
        int place = own_last;
        // The first id of this lane at which the lane's running sum exceeds what is left.
#pragma unroll
        for (int i = kIds - 1; i >= 0; --i) {
          double running = 0;
#pragma unroll
          for (int j = 0; j <= i; ++j) running += mass[j];
          place = mass[i] > 0 && running > left ? i : place;
        }
        const int winner = __builtin_ctzll(crossed);
        found = first + winner * kIds + of_lane(place, winner);
      }
      if constexpr (kWaves > 1) {
        if (lane() == 0) memory_->found[wave()] = found;
        barrier();
#pragma unroll
        for (int i = kWaves - 1; i >= 0; --i)
          found = memory_->found[i] >= 0 ? memory_->found[i] : found;
        found = __builtin_amdgcn_readfirstlane(found);
      }
      if (found >= 0) return found;
      r -= all;
    }
    return last;
  }

  template <class Term>
  static TermsOf<Term> terms(int n, Term term) {
    return {n, term};
  }
  template <class F>
  static void each(int n, F f) {
    for (int i = lane(); i < n; i += kWave) f(i);
  }
  static double exp2(double x) {
    x = x > -2000 ? x : -2000;  // as good as 0
    const double whole = __builtin_rint(x);
    return __builtin_ldexp(double(__builtin_amdgcn_exp2f(float(x - whole))), int(whole));
  }
  template <class Term, class Join, class F>
  static double chain(int n, double none, Term term, Join join, F f) {
    for (int base = 0; base < n; base += kWave) {
      const int i = base + lane();
      const double own = i < n ? term(i) : 0.0;
      double upto = 0;
      for (int j = 0; j < least(n - base, kWave); ++j) {
        none = join(none, of_lane(own, j));
        upto = j == lane() ? none : upto;
      }
      if (i < n) f(i, upto);
    }
    return none;
  }
  template <class Holds>
  static int first(int n, Holds holds) {
    for (int base = 0; base < n; base += kWave) {
      const int i = base + lane();
      const uint64_t found = __builtin_amdgcn_ballot_w64(i < n && holds(i));
      if (found) return base + __builtin_ctzll(found);
    }
    return n;
  }

  template <int kSteps = kHeldSteps, class T>
  static Held<T, kSteps, kWaves * kStep> hold(Span span, const T* row) {
    constexpr int kApart = kWaves * kStep;
    Held<T, kSteps, kApart> out{
        {}, -__builtin_inff(), {span.first + wave() * kStep + opaque(lane() * kIds), span}};
    // Beyond the span's end, its last ids instead: `mask` leaves them out. Ways of their own for whole
    // spans would have the loads of one row wait for those of another.
    const int last = span.stop - kIds;
    if (last >= span.first) {
#pragma unroll
      for (int i = 0; i < kSteps; ++i)
        out.raw[i] = At::raw(row + least(out.at.first + i * kApart, last));
    }
    const int end = out.whole() + lane();
    if (out.ragged() && wave() == 0 && end < span.stop && end != span.hole)
      out.rest = At::one(row + end);
    return out;
  }

  // f(at, x, y...) summed over what is held of several rows.
  template <class F, class T, int kSteps, int kApart, class... Others>
  static double held_sum(F f, const Held<T, kSteps, kApart>& held, const Others&... others) {
    float8 sum = float8(0.0f);
#pragma unroll
    for (int i = 0; i < kSteps; ++i) sum += f(held.at, held.x(i), others.x(i)...);
    double out = total(sum);
    if (held.ragged()) out += total(f(held.at, lone(held.rest), lone(others.rest)...));
    return joined(out, plus);
  }
  template <class F, class T, class... Others>
  double rows_sum(Span span, F f, const T* row, const Others*... others) const {
    // Of all waves of a crew, fewer are enough: more are under way.
    constexpr int kRows = 1 + sizeof...(others);
    constexpr int kShare = kWaves > 4 ? 2 * kRows : kWaves > 1 ? 2 : 1;
    constexpr int kSteps = most(kHeldSteps * 2 / int(sizeof(T)) / kRows / kShare, 1);
    constexpr int kPiece = kSteps * kWaves * kStep;
    double sum = 0;
#pragma clang loop unroll(disable)
    for (int first = span.first; first < span.stop; first += kPiece) {
      const Span piece{first, least(span.stop, first + kPiece), span.hole};
      sum += masked_sum(f, hold<kSteps>(piece, row), hold<kSteps>(piece, others)...);
    }
    return exchanged({sum, 0}).sum;
  }
  template <class F, class T>
  Sums rows_sums(Span span, F f, const T* row) const {
    float8 other = float8(0.0f);
    const double own = rows_sum(span, [&](At at, float8 x) { return f(at, x, other); }, row);
    return {own, exchanged_sum(other)};
  }
  // What all threads have, joined.
  double exchanged_sum(float8 x) const { return exchanged({joined(total(x), plus), 0}).sum; }
  float exchanged_estimate(float8 x) const {
    float out = joined(in_pairs(x), [](float a, float b) { return a + b; });
    if constexpr (kWaves > 1) {
      CrewMemory<kWaves>& m = *memory_;
      barrier();  // what is there has been read
      if (lane() == 0) m.peaks[wave()] = out;
      barrier();
      out = 0;
#pragma unroll
      for (int i = 0; i < kWaves; ++i) out += m.peaks[i];
      out = of_lane(out, 0);  // in a scalar register
    }
    return out;
  }
  Total exchanged(Total own) const {
    if constexpr (kWaves > 1) {
      CrewMemory<kWaves>& m = *memory_;
      barrier();  // what is there has been read
      if (lane() == 0) m.totals[wave()] = own.sum, m.peaks[wave()] = own.peak;
      barrier();
      own = {0, -__builtin_inff()};
#pragma unroll
      for (int i = 0; i < kWaves; ++i)
        own.sum += m.totals[i], own.peak = __builtin_fmaxf(own.peak, m.peaks[i]);
      own = {of_lane(own.sum, 0), of_lane(own.peak, 0)};  // in scalar registers
    }
    return own;
  }

  template <class T>
  static float value(const T* p) {
    return At::one(p);
  }
  static bool bit(const uint32_t* words, int id) {
    return At::word(words, id / 32) >> (id % 32) & 1;
  }

 private:
  static int lane() { return thread_index() & (kWave - 1); }
  static int wave() {
    return kWaves == 1 ? 0 : __builtin_amdgcn_readfirstlane(thread_index() / kWave);
  }
  static void barrier() { Group<kWaves * kWave>().barrier(); }
  template <class F, class... Held>
  static double masked_sum(F f, Held... held) {
    (held.mask(), ...);
    return held_sum(f, held...);
  }
  static float8 lone(float x) {
    float8 out = float8(-__builtin_inff());
    out[0] = x;
    return out;
  }
  static double plus(double a, double b) { return a + b; }
  static float in_pairs(float8 x) {
    const auto four = x.lo + x.hi;
    const auto two = four.lo + four.hi;
    return two.x + two.y;
  }
  static double total(float8 x) {
    double total = 0;
#pragma unroll
    for (int i = 0; i < kIds; ++i) total += x[i];
    return total;
  }

  CrewMemory<kWaves>* memory_ = nullptr;
};

template <bool kHold, int kWaves>
struct MemoryOf {
  using Type = CrewMemory<kWaves>;
};
template <int kWaves>
struct MemoryOf<true, kWaves> {
  using Type = HoldingMemory<kWaves>;
};

// A workgroup, or a wave of one; its waves take vocab_blocks in turn, and share one that concludes.
template <int kThreadsOfCrew, bool kHold = false>
class Crew {
  static constexpr int kWaves = kThreadsOfCrew / kWave;

 public:
  using Scan = ScanOf<1>;
  using Memory = typename MemoryOf<kHold, kWaves>::Type;
  static constexpr bool kStaged = true;
  static constexpr bool kLists = false, kHolds = kHold;

  Crew() = default;
  explicit Crew(Memory& memory) : memory_(&memory) {}

  template <class F>
  void share(int n, F f) const {
    barrier();
    for (int i = wave(); i < n; i += kWaves) f(Scan(), i);
    barrier();
  }
  template <class Vocabulary, class F>
  void each_block(const Vocabulary& vocabulary, F f) const {
    share(vocabulary.blocks, [&](const Scan& scan, int i) { f(scan, i, vocabulary.span(i)); });
  }
  template <class Vocabulary, class F>
  int within(const Vocabulary& vocabulary, int block, F f) const {
    return f(together(), vocabulary.span(block));
  }
  ScanOf<kWaves> together() const { return ScanOf<kWaves>(memory_); }
  static constexpr int kNumbers = kThreadsOfCrew * WaveList::kOfLane;

  struct Numbers {
    float8 x, y;
  };
  static_assert(WaveList::kOfLane == sizeof(Numbers) / sizeof(float));
  // By groups of 8 threads, each of which loads a cache line of 16-bit logits.
  template <class F>
  static double sample(Span span, F f, Numbers& out) {
    constexpr int kLanes = 8, kGroup = kLanes * kIds, kGroups = kThreadsOfCrew / kLanes;
    const int all = ceil_div(span.stop, kGroup), taken = least(all, 2 * kGroups);
    const int own = opaque(thread_index());
    auto some = [&](int group) {
      const At at{group * all / taken * kGroup + own % kLanes * kIds, span};
      return group < taken && at.first < span.stop ? f(at) : At::all(-__builtin_inff());
    };
    out = {some(own / kLanes), some(kGroups + own / kLanes)};
    return double(all) / taken;
  }
  using List = WaveList;
  List list() const { return {memory_->listed[wave()], 0}; }
  bool fits(const List& list) const { return total(list.size > WaveList::kRoom) == 0; }
  static Numbers held(const List& list) {
    __builtin_amdgcn_fence(__ATOMIC_ACQ_REL, "wavefront");
    const int lane = opaque(thread_index() & (kWave - 1));
    auto some = [&list, lane](int first) {
      float8 out;
#pragma unroll
      for (int i = 0; i < kIds; ++i) {
        const int place = (first + i) * kWave + lane;
        const float x = list.out[least(place, WaveList::kRoom - 1)];
        out[i] = place < list.size ? x : -__builtin_inff();
      }
      return out;
    };
    return {some(0), some(kIds)};
  }
  template <class F>
  static Numbers map(F f, const Numbers& a) {
    return {f(At(), a.x), f(At(), a.y)};
  }
  template <class F, class... Others>
  double sum(F f, const Numbers& a, const Others&... others) const {
    return together().exchanged_sum(f(At(), a.x, others.x...) + f(At(), a.y, others.y...));
  }
  template <class F, class... Others>
  float estimate(F f, const Numbers& a, const Others&... others) const {
    return together().exchanged_estimate(f(At(), a.x, others.x...) + f(At(), a.y, others.y...));
  }
  double total(double x) const { return together().exchanged({x, 0}).sum; }

  static Crew<kWave> alone() { return {}; }
  static bool leader() { return thread_index() % kThreadsOfCrew == 0; }
  static void barrier() {
    if constexpr (kWaves > 1)
      Group<kThreadsOfCrew>().barrier();
    else
      __builtin_amdgcn_fence(__ATOMIC_ACQ_REL, "workgroup");
  }

  // Written through to where all XCDs read, so that `last` has no cache to write back.
  static void publish(double* p, double x) {
    __hip_atomic_store(p, x, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
    __builtin_amdgcn_s_waitcnt(0x0f70);  // vmcnt(0): it has arrived
  }
  bool last(int32_t* arrived, int n) const {
    if (leader())
      memory_->before =
          __hip_atomic_fetch_add(arrived, 1, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
    barrier();
    if (__builtin_amdgcn_readfirstlane(memory_->before) != n - 1) return false;
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "agent");
    return true;
  }

 private:
  static int wave() {
    return kWaves == 1 ? 0 : __builtin_amdgcn_readfirstlane(thread_index() / kWave);
  }

  Memory* memory_ = nullptr;
};

static_assert(CrewTarget<Crew<kThreads>> && CrewTarget<Crew<kWave>>);

}  // namespace blockdraft::cdna
