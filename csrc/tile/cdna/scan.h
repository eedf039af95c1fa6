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
    x = maximum(all(-1e4f / factor), x);
    const float8 product = x * factor, power = exp2(product);
    const float8 rest = fma(x, all(float(scale - factor)), fma(x, all(factor), -product));
    return fma(power, rest * 0.693147181f, power);
  }

  template <class T>
  float8 load(const T* p) const {
    float8 out;
    if (span.stop - first >= kIds && (span.hole < first || span.hole >= first + kIds)) {
      eight(p + first, out);
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

 private:
  // The bits of the lane's ids; any for ids beyond the span, whose words may not exist.
  uint32_t byte(const uint32_t* words) const {  // first is a multiple of 8
    return word(words, least(first, span.stop - 1) / 32) >> (first % 32) & 0xff;
  }

  typedef uint32_t words __attribute__((ext_vector_type(4), aligned(2)));
  typedef float floats __attribute__((ext_vector_type(4), aligned(4)));
  typedef _Float16 half8 __attribute__((ext_vector_type(8)));

  static void eight(const float* p, float8& out) {
    const auto* four = (const __attribute__((address_space(1))) floats*)p;
    out.lo = four[0];
    out.hi = four[1];
  }
  static void eight(const bf16* p, float8& out) {
    const words pairs = *(const __attribute__((address_space(1))) words*)p;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[2 * i] = __builtin_bit_cast(float, pairs[i] << 16);
      out[2 * i + 1] = __builtin_bit_cast(float, pairs[i] & 0xffff0000u);
    }
  }
  static void eight(const fp16* p, float8& out) {
    const words pairs = *(const __attribute__((address_space(1))) words*)p;
    out = __builtin_convertvector(__builtin_bit_cast(half8, pairs), float8);
  }
};

class Scan {
 public:
  static constexpr bool kProducts = false, kReloads = true, kSplits = false;

  template <class Params>
  static Params reload(const Params*) {
    return cdna::reload<Params>();
  }

  static bool leader() { return lane() == 0; }

  template <class F>
  static Total sum(Span span, F f) {
    float8 sum = float8(0.0f), peak = float8(-__builtin_inff());
    for (int base = span.first; base < span.stop; base += kStep)
      sum += f(At{base + lane() * kIds, span}, peak);
    double total = 0;
    float top = -__builtin_inff();
#pragma unroll
    for (int i = 0; i < kIds; ++i) total += sum[i], top = __builtin_fmaxf(top, peak[i]);
#pragma unroll
    for (int distance = 1; distance < kWave; distance *= 2) {
      total += from_lane(total, lane() ^ distance);
      top = __builtin_fmaxf(top, from_lane(top, lane() ^ distance));
    }
    return {total, top};
  }

  template <class F>
  static int crossing(Span span, F f, double r) {
    float8 peak;
    int last = -1;
    for (int base = span.first; base < span.stop; base += kStep) {
      const float8 mass = f(At{base + lane() * kIds, span}, peak);
      double own = 0;
      int own_last = -1;
#pragma unroll
      for (int i = 0; i < kIds; ++i) own += mass[i], own_last = mass[i] > 0 ? i : own_last;
      double upto = own;  // the sum over this lane and those before
#pragma unroll
      for (int distance = 1; distance < kWave; distance *= 2) {
        const double before = from_lane(upto, (lane() - distance) & (kWave - 1));
        upto += lane() >= distance ? before : 0.0;
      }
      const uint64_t crossed = __builtin_amdgcn_ballot_w64(upto > r && own > 0);
      if (crossed) {
        double left = r - (upto - own);
        int found = own_last;
        // The first id of this lane at which the lane's running sum exceeds what is left.
#pragma unroll
        for (int i = kIds - 1; i >= 0; --i) {
          double running = 0;
#pragma unroll
          for (int j = 0; j <= i; ++j) running += mass[j];
          found = mass[i] > 0 && running > left ? i : found;
        }
        const int winner = __builtin_ctzll(crossed);
        return base + winner * kIds + from_lane(found, winner);
      }
      const uint64_t positive = __builtin_amdgcn_ballot_w64(own > 0);
      if (positive) {
        const int highest = 63 - __builtin_clzll(positive);
        last = base + highest * kIds + from_lane(own_last, highest);
      }
      r -= from_lane(upto, kWave - 1);
    }
    return last;
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
};

// A workgroup; its waves take vocab_blocks in turn.
template <int kThreadsOfCrew>
class Crew {
 public:
  using Scan = cdna::Scan;
  static constexpr bool kStaged = true;
  static constexpr bool kLists = false;

  template <class Vocabulary, class F>
  void each_block(const Vocabulary& vocabulary, F f) const {
    barrier();
    for (int i = wave(); i < vocabulary.blocks; i += kThreadsOfCrew / kWave)
      f(Scan(), i, vocabulary.span(i));
    barrier();
  }
  template <class Vocabulary, class F>
  static int within(const Vocabulary& vocabulary, int block, F f) {
    return f(Scan(), vocabulary.span(block));
  }
  static bool leader() { return thread_index() == 0; }
  static void barrier() { Group<kThreadsOfCrew>().barrier(); }

 private:
  static int wave() { return __builtin_amdgcn_readfirstlane(thread_index() / kWave); }
};

static_assert(CrewTarget<Crew<kThreads>>);

}  // namespace blockdraft::cdna
