// Scans of the simulated target: plain loops by a wave of one lane; and a crew of such waves.
#pragma once

#include <cmath>

#include "tile/scan.h"
#include "tile/sim/group.h"

namespace blockdraft::sim {

struct At {
  using Float = float;
  int first;
  Span span;
  int wave = -1;  // of several that share a scan

  static float all(float x) { return x; }
  static int all(int x) { return x; }
  template <class Params>
  static const Params& reload(const Params* p) {
    return *p;
  }
  template <class>
  int id() const {
    return first;
  }
  template <class>
  bool bits(const uint32_t* words) const {
    return words[first / 32] >> (first % 32) & 1;
  }
  template <class, class Ids, class F>
  float revise(float x, const uint32_t* words, Ids ids, int n, F f) const {
    bool marked = bits<float>(words);
    for (int i = 0; i < n; ++i) marked |= ids()[i] == first;
    return marked ? f(x, first) : x;
  }
  static float select(bool mask, float a, float b) { return mask ? a : b; }
  static float maximum(float a, float b) { return a > b ? a : b; }  // b if either is NaN
  static float fma(float a, float b, float c) { return std::fma(a, b, c); }
  static float exp2(float x) { return x < -126 ? 0.0f : std::exp2(x); }
  static float exp2(float x, double scale) {
    const double product = x * scale;
    return product < -126 ? 0.0f : float(std::exp2(product));
  }
  template <class List>
  void append(List& list, float x, bool mask) const {
    if (wave >= 0 && first % kWaves != wave) return;
    if (mask && list.size++ < List::kRoom) list.out[list.size - 1] = x;
  }
  template <class T>
  float load(const T* p) const {
    return first == span.hole ? -INFINITY : value(p[first]);
  }
};

class Scan : public SerialScan {
 public:
  static constexpr bool kProducts = false, kReloads = false, kSplits = false;
  static bool bit(const uint32_t* words, int id) { return words[id / 32] >> (id % 32) & 1; }
  template <class Params>
  static const Params& reload(const Params* p) {
    return *p;
  }
  static bool leader() { return true; }

  Scan() = default;
  explicit Scan(int wave) : wave_(wave) {}

  template <class F>
  Total sum(Span span, F f) const {
    Total total{0, -INFINITY};
    for (int id = span.first; id < span.stop; ++id) total.sum += f(At{id, span, wave_}, total.peak);
    return total;
  }

  template <class F>
  Sums sums(Span span, F f) const {
    float other = 0;
    const double own = sum(span, [&](At at, float&) { return f(at, other); }).sum;
    return {own, other};
  }

  template <class F>
  static int crossing(Span span, F f, double r) {
    int last = -1;
    float peak;
    for (int id = span.first; id < span.stop; ++id) {
      const float mass = f(At{id, span}, peak);
      if (!(mass > 0)) continue;
      last = id;
      if ((r -= mass) < 0) break;
    }
    return last;
  }

  template <class T>
  static float value(const T* p) {
    return sim::value(*p);
  }

 private:
  int wave_ = -1;
};

// A wave by itself.
class Alone {
 public:
  using Scan = sim::Scan;
  static constexpr bool kStaged = true;
  static constexpr bool kLists = false, kHolds = false;

  template <class Vocabulary, class F>
  void each_block(const Vocabulary& vocabulary, F f) const {
    for (int i = 0; i < vocabulary.blocks; ++i) f(Scan(), i, vocabulary.span(i));
  }
  template <class Vocabulary, class F>
  static int within(const Vocabulary& vocabulary, int block, F f) {
    return f(Scan(), vocabulary.span(block));
  }
  static bool leader() { return true; }
  static void barrier() {}
};

// What the waves of a crew share.
struct CrewMemory {
  bool last;
  double totals[kWaves];
};

// Scans that crews of `sim` have started, of all vocab_blocks or by all waves.
inline int scans = 0;

// kNumbersHeld: so few that a test's small vocabulary has more.
template <int kNumbersHeld = 256>
class CrewOf {
 public:
  using Scan = sim::Scan;
  static constexpr bool kStaged = true;
  static constexpr bool kLists = false, kHolds = true;

  CrewOf(const Wave& wave, CrewMemory& memory) : group_(wave), wave_(wave.index), memory_(memory) {}

  template <class F>
  void share(int n, F f) const {
    barrier();
    for (int i = wave_; i < n; i += kWaves) f(Scan(), i);
    barrier();
  }
  template <class Vocabulary, class F>
  void each_block(const Vocabulary& vocabulary, F f) const {
    scans += leader();
    share(vocabulary.blocks, [&](const Scan& scan, int i) { f(scan, i, vocabulary.span(i)); });
  }
  static Alone alone() { return {}; }
  static void publish(double* p, double x) { *p = x; }
  bool last(int32_t* arrived, int n) const {
    if (leader()) memory_.last = ++*arrived == n;
    barrier();
    return memory_.last;
  }
  template <class Vocabulary, class F>
  static int within(const Vocabulary& vocabulary, int block, F f) {
    return f(Scan(), vocabulary.span(block));
  }

  static constexpr int kNumbers = kNumbersHeld;  // of all waves
  struct Numbers {
    float x[kNumbers];
    int size;
  };
  struct List {
    static constexpr int kRoom = kNumbers / kWaves;
    float out[kRoom];
    int size;
  };
  Scan together() const {
    scans += leader();
    return Scan(wave_);
  }
  template <class F>
  double sample(Span span, F f, Numbers& out) const {
    const int size = least(span.stop, kNumbers);
    out.size = 0;
    for (int i = wave_; i < size; i += kWaves)
      out.x[out.size++] = f(At{int(int64_t(i) * span.stop / size), span});
    return double(span.stop) / size;
  }
  static List list() { return {{}, 0}; }
  bool fits(const List& list) const { return total(list.size > List::kRoom) == 0; }
  static Numbers held(const List& list) {
    Numbers out;
    out.size = least(list.size, List::kRoom);
    for (int i = 0; i < out.size; ++i) out.x[i] = list.out[i];
    return out;
  }
  template <class F>
  static Numbers map(F f, const Numbers& x) {
    Numbers out;
    out.size = x.size;
    for (int i = 0; i < x.size; ++i) out.x[i] = f(At(), x.x[i]);
    return out;
  }
  template <class F, class... Others>
  double sum(F f, const Numbers& x, const Others&... others) const {
    double sum = 0;
    for (int i = 0; i < x.size; ++i) sum += f(At(), x.x[i], others.x[i]...);
    return total(sum);
  }
  template <class F, class... Others>
  float estimate(F f, const Numbers& x, const Others&... others) const {
    return float(sum(f, x, others...));
  }
  double total(double x) const {
    barrier();  // what is there has been read
    memory_.totals[wave_] = x;
    barrier();
    double total = 0;
    for (double own : memory_.totals) total += own;
    return total;
  }

  bool leader() const { return group_.leader(); }
  void barrier() const { group_.barrier(); }

 private:
  Group group_;
  int wave_;
  CrewMemory& memory_;
};

using Crew = CrewOf<>;
static_assert(CrewTarget<Crew> && CrewTarget<Alone>);

}  // namespace blockdraft::sim
