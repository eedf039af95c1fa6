// A group of the simulated target: kWaves waves of one lane each.
#pragma once

#include <cmath>

#include "tile/cpu/group.h"
#include "tile/group.h"
#include "tile/sim/scheduler.h"

namespace blockdraft::sim {

class Group {
 public:
  explicit Group(const Wave& wave) : turn_(wave), wave_(wave.index) {}

  template <class F>
  void each(int n, F f) const {
    for (int i = wave_; i < n; i += kWaves) f(i);
  }
  template <class F>
  void each(int m, int n, F f) const {
    each(m * n, [&](int i) { f(i / n, i % n); });
  }
  template <class F>
  void each_of(int m, int n, F f) const {
    each(m * n, [&](int i) { f(i / n)(i % n); });
  }
  template <class Weight, class Term, class F>
  void combine(int n, int terms, Weight weight, Term term, F f) const {
    each(n, [&](int i) { f(i, weighted_sum(i, terms, weight, term)); });
  }
  template <class F>
  void by_waves(int n, F f) const {
    each(n, [&](int i) { f(i, cpu::Group::Wave()); });
  }
  template <class F>
  static cpu::Group::List list(int n, F f) {
    return cpu::Group::list(n, f);
  }
  bool leader() const { return wave_ == 0; }
  void barrier() const { turn_.barrier(); }
  static int uniform(int x) { return x; }
  template <class T>
  static void expect(const T*, int) {}
  template <class Params>
  static const Params& reload(const Params& p) {
    return p;
  }
  template <class T>
  static void store(T* p, float x) {
    cpu::from_float(p, x);
  }
  template <class T, class V>
  static void store(T* p, V x, int n) {
    for (int j = 0; j < least(n, int(sizeof x / sizeof(float))); ++j) store(p + j, x[j]);
  }
  template <class T>
  static four values(const T* p, int n) {
    four out{};
    for (int j = 0; j < least(n, 4); ++j) out[j] = value(p[j]);
    return out;
  }
  static Unzipped<two> unzip(four x) { return {two{x[0], x[2]}, two{x[1], x[3]}}; }
  template <class T>
  static void store(T* p, eight x) {
    for (int j = 0; j < 8; ++j) store(p + j, x[j]);
  }
  template <class T>
  static eight values(const T* p) {
    eight out;
    for (int j = 0; j < 8; ++j) out[j] = value(p[j]);
    return out;
  }
  template <class T>
  static float value(T x) {
    return cpu::value(x);
  }
  static float exp2(float x) { return std::exp2(clamped_power(x)); }
  static two exp2(two x) { return two{exp2(x[0]), exp2(x[1])}; }
  static four exp2(four x) { return four{exp2(x[0]), exp2(x[1]), exp2(x[2]), exp2(x[3])}; }

 protected:
  Wave turn_;
  int wave_;
};

using cpu::value;

template <class T>
float rounded(float x) {
  T t;
  cpu::from_float(&t, x);
  return value(t);
}

static_assert(GroupTarget<Group>);

}  // namespace blockdraft::sim
