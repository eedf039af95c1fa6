// The tile layer: what a kernel body may use. A body is written once, as a template over a target,
// and compiled for each: cpu/ (vector extensions, one thread), cdna/ (MFMA and LDS, gfx942 and
// gfx950) and sim/ (for tests: several waves, in random order between barriers, on memory that
// starts as NaN).
//
// A *group* (CPU: a thread; GPU: a workgroup) works on one item; all of its waves run the body.
//
//   group.each(n, f)       f(i) for i < n, each by exactly one thread of the group
//   group.each(m, n, f)    f(i, j) for i < m, j < n, likewise
//   group.each_of(m, n, f) f(i)(j) likewise; what f computes for i may serve several j
//   group.combine(n, m, weight, term, f)
//                          f(i, sum over s < m of weight(s) * term(s)[i]) for i < n, in the order
//                          of s
//   group.by_waves(n, f)   f(i, wave) for i < n, each by one wave of the group
//     wave.fold(n, none, term, join)
//                          all term(j), j < n, joined, in all threads of the wave; `none` changes
//                          nothing, and the order of joining is the target's own
//     wave.each(n, f), wave.leader()
//                          as the group's. each(n, f) and fold(n, ...) give i to the same thread
//   group.list(n, f)       the integers f(i), i < n <= 64, each computed once: in all threads of the
//                          group, list[i] is one of them, and list.bits(test) the bits i for which
//                          test(f(i)) is true
//   Group::reload(p)       the kernel's parameters p, read again, so that they need not stay in
//                          registers in between
//   Group::expect(p, n)    n elements will be read soon; may do nothing
//   Group::uniform(x)      x, which must be the same in all threads of the group
//   group.leader()         true for one thread of the group
//   Group::values(p)       eight elements as floats, from a multiple of 16 bytes on, of fp8 of 8
//   Group::store(p, x)     *p := x rounded to nearest; likewise of eight; fp8 saturates
//   Group::values(p, n)    as many elements as a product's epilogue is given sums (gemm.h): the first
//                          n, or all if n is more; zeros beyond
//   Group::store(p, x, n)  the opposite, rounded; also of half as many
//   Group::unzip(x)        the even and the odd ones of such a vector
//   Group::value(x)        element x as a float
//   Group::exp2(x)         2^x, where x counts as at most 126 away from 0; of a float or of a vector
//   group.barrier()        makes what the group's threads wrote visible to all of them
#pragma once

#include "base/numbers.h"

namespace blockdraft {

// Example arguments for the concepts.
struct Example {
  static void item(int) {}
  static void pair(int, int) {}
  static int integer(int) { return 0; }
  static float number(int) { return 0; }
  static const float* numbers(int) { return nullptr; }
  static void total(int, float) {}
  static float join(float a, float) { return a; }
  template <class Wave>
  void operator()(int, const Wave& wave) const {
    wave.each(1, item);
    if (wave.leader()) wave.fold(1, 0.0f, number, join);
  }
  static bool test(int) { return false; }
};

template <class G>
concept GroupTarget = requires(const G group, int n, float* p) {
  group.each(n, Example::item);
  group.each(n, n, Example::pair);
  group.each_of(n, n, [](int) { return Example::item; });
  group.combine(n, n, Example::number, Example::numbers, Example::total);
  group.by_waves(n, Example());
  group.list(n, Example::integer).bits(Example::test) << group.list(n, Example::integer)[0];
  n = G::uniform(G::reload(n));
  G::expect(p, n);
  group.leader() ? 1 : 0;
  group.barrier();
  G::store(p, G::exp2(four{G::exp2(G::value(*p))})[0]);
  G::store(p, G::values(p));
  G::store(p, G::values(p, n), n);
  G::unzip(G::values(p, n)).even;
};

// Element i of combine's sum, for targets where one thread sums a whole element.
template <class Weight, class Term>
float weighted_sum(int i, int terms, Weight weight, Term term) {
  float total = 0;
  for (int s = 0; s < terms; ++s) total += weight(s) * term(s)[i];
  return total;
}

}  // namespace blockdraft
