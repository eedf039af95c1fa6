// A group of a CPU is one thread, so its barrier does nothing.
#pragma once

#include <algorithm>
#include <vector>

#include "tile/cpu/order.h"
#include "tile/group.h"

namespace blockdraft::cpu {

// So many floats of `memory`, which is made longer if need be, from a cache line on.
inline float* aligned(std::vector<float>& memory, int64_t floats) {
  if (int64_t(memory.size()) < floats + 16) memory.resize(floats + 16);
  const uintptr_t at = reinterpret_cast<uintptr_t>(memory.data()) / sizeof(float);
  return memory.data() + (-at & 15);
}

class Group {
  static constexpr int kBlock = 128;  // elements whose sums stay in the L1

 public:
  template <class F>
  void each(int n, F f) const {
    for (int i = 0; i < n; ++i) f(i);
  }
  template <class F>
  void each(int m, int n, F f) const {
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < n; ++j) f(i, j);
  }
  template <class F>
  void each_of(int m, int n, F f) const {
    for (int i = 0; i < m; ++i) {
      auto own = f(i);
      for (int j = 0; j < n; ++j) own(j);
    }
  }
  template <class Weight, class Term, class F>
  void combine(int n, int terms, Weight weight, Term term, F f) const {
    float total[kBlock];
    for (int first = 0; first < n; first += kBlock) {
      const int count = least(n - first, kBlock);
      std::fill(total, total + count, 0.0f);
      for (int s = 0; s < terms; ++s) {
        const float factor = weight(s);
        const float* values = term(s) + first;
        for (int i = 0; i < count; ++i) total[i] += factor * values[i];
      }
      for (int i = 0; i < count; ++i) f(first + i, total[i]);
    }
  }
  struct Wave {
    template <class F>
    void each(int n, F f) const {
      for (int i = 0; i < n; ++i) f(i);
    }
    template <class N, class Term, class Join>
    N fold(int n, N none, Term term, Join join) const {
      N lanes[kLanes];
      std::fill(lanes, lanes + kLanes, none);
      int i = 0;
      for (; i + kLanes <= n; i += kLanes)
        for (int j = 0; j < kLanes; ++j) lanes[j] = join(lanes[j], term(i + j));
      for (; i < n; ++i) lanes[0] = join(lanes[0], term(i));
      for (int j = 1; j < kLanes; ++j) lanes[0] = join(lanes[0], lanes[j]);
      return lanes[0];
    }
    static bool leader() { return true; }
  };
  template <class F>
  void by_waves(int n, F f) const {
    for (int i = 0; i < n; ++i) f(i, Wave());
  }
  struct List {
    int values[64], count;

    int operator[](int i) const { return values[i]; }
    template <class Test>
    uint64_t bits(Test test) const {
      uint64_t out = 0;
      for (int i = 0; i < count; ++i) out |= uint64_t(test(values[i])) << i;
      return out;
    }
  };
  template <class F>
  static List list(int n, F f) {
    List out;
    out.count = n;
    for (int i = 0; i < n; ++i) out.values[i] = f(i);
    return out;
  }
  static bool leader() { return true; }
  static void barrier() {}
  static int uniform(int x) { return x; }
  template <class T>
  static void expect(const T* p, int n) {
    constexpr int kLine = 64 / sizeof(T);
    for (int i = 0; i < n; i += kLine) __builtin_prefetch(p + i);
    asm volatile("");  // gcc drops calls of a function that does nothing but prefetch
  }
  template <class Params>
  static const Params& reload(const Params& p) {
    return p;
  }
  template <class T>
  static void store(T* p, float x) {
    from_float(p, x);
  }
  // A row is written from its begin to its end, between stores to other rows, which are far away: what
  // comes soon is fetched.
  template <class T, class V>
  static void store(T* p, V x, int n) {
    constexpr int kSize = sizeof x / sizeof(float);
    vec parts[ceil_div(kSize, kLanes)] = {};
    std::memcpy(parts, &x, sizeof x);
    T out[most(kSize, kLanes)];
    for (int j = 0; j < kSize; j += kLanes) cpu::store(out + j, parts[j / kLanes]);
    __builtin_prefetch(p + 2 * kWide, 1, 2);
    if (n >= kSize)
      std::memcpy(p, out, kSize * sizeof(T));
    else
      std::copy(out, out + n, p);
  }
  template <class T>
  static wide values(const T* p, int n) {
    if (n >= kWide) return to_wide(p);
    T padded[kWide] = {};
    std::copy(p, p + n, padded);
    return to_wide(padded);
  }
#ifdef __AVX512F__
  static Unzipped<eight> unzip(wide x) {
    vec even = (vec)_mm512_castps512_ps256((__m512)x);
    vec odd = (vec)_mm512_extractf32x8_ps((__m512)x, 1);
    divide(even, odd);
    return {even, odd};
  }
#else
  static Unzipped<four> unzip(wide x) {
    vec even = x, odd = x;
    divide(even, odd);
    return {four{even[0], even[1], even[2], even[3]}, four{odd[0], odd[1], odd[2], odd[3]}};
  }
#endif
  template <class T>
  static void store(T* p, eight x) {
    cpu::store(p, x);
  }
  template <class T>
  static eight values(const T* p) {
    return to_float(p);
  }
  template <class T>
  static float value(T x) {
    return cpu::value(x);
  }
  template <class V>
  static V exp2(V x) {
    return exp2_within(clamped_power(x));
  }
  static float exp2(float x) { return exp2(four{x})[0]; }
};

static_assert(GroupTarget<Group>);

}  // namespace blockdraft::cpu
