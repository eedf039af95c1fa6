// Scans over long rows of numbers. Each target has a Scan, which works on a span of ids (CPU: a
// thread; CDNA: a wave; sim: a wave of one lane), and a Crew of scans. All threads of a scan call a
// primitive with the same arguments and get the same result, which depends on the span and f alone.
//
//   scan.sum(span, f)           f(at, peak) summed over the ids of the span; f may raise `peak`,
//                               which starts at -inf
//   scan.sum_kept<T>(span, words, f)
//                               where Scan::kSplits: f(at) summed over the ids whose bits are set;
//                               fast where whole words have all bits or none
//   scan.sum_weights<T>(span, words, f)
//                               likewise, of f(at) that are factors of at.exp2: faster still; infinity
//                               or NaN of NaN
//   scan.map(n, f, out)         likewise: out[i] = f(at) for i < n of lists of floats; n is a multiple
//                               of 16
//   scan.sums(span, f)          f(at, other) summed, and what f adds to `other`
//   scan.crossing(span, f, r)   the first id at which the running sum of f exceeds r. If rounding
//                               keeps it below r, the last id where f is positive (-1: none)
//   scan.terms(n, term)         term(i) for i < n, n > 0; asked for at once and, the first ones, kept
//                               by a GPU. Of these:
//   terms.fold(none, join, of)  of(term(i)) joined in an order that depends on n alone
//   terms.find(r, of)           as `crossing`, of of(term(i)); and what of r is left there
//   scan.first(n, holds)        the least i < n for which it holds, or n; it may be asked of others
//   scan.chain(n, none, term, join, f)
//                               f(i, x) for i < n, x being term(0) to term(i) joined in order;
//                               returns the last x
//   scan.collect(span, f, low, high, out, room)
//                               where Crew::kLists: writes the values of f(at) that are neither at
//                               most `low` nor above `high` to `out`, which has room for so many
//                               and for kListSlack more floats, in an order that depends on the
//                               span alone, of a list of floats in that of ids. Returns how many
//                               there are
//   scan.count(span, p, words, counts)
//                               likewise: adds the ids of the span, whose bits are set in `words`
//                               (null: all), to counts[p[id].bits], for a type of 16 bits
//   Scan::value(p)              *p as a float
//   Scan::bit(words, id)        whether bit id % 32 of words[id / 32] is set
//   Scan::reload(p)             *p, the start of the kernel's parameters, read again; where
//                               Scan::kReloads, p may be null
//   scan.leader()               true for one thread of the scan
//   Scan::each(n, f)            where Crew::kStaged: f(i) for i < n, each by one of its threads
//   Scan::exp2(x)               where Scan::kHeld: 2^x for a double x <= 0, to 2e-7
//   Scan::kHeld                 so many ids of a row fit into a scan's registers: all loads are under
//                               way before one is used. Where that is not 0:
//   scan.hold(span, row)        the logits of a span of at most so many ids; held.peak() is the
//                               greatest
//   scan.held_sum(f, held)      f(at, x) summed over what is held; of -inf it must be 0
//   scan.rows_sum(span, f, p, q...)
//                               f(at, x, y...) summed over a span of rows p, q..., likewise; the
//                               span may be longer
//   scan.rows_sums(span, f, p)  likewise as `sums`, of f(at, x, other)
//   Scan::kSplits               whether rows with a mask or penalties are scanned by code of their own
//
// f handles several ids at a time: `at`, of a type of the target, stands for them. Its Float and
// Int support the operators of float and int between operands of the same type.
//
//   at.load(p)                  p[id], -inf for ids that the span leaves out: f must be 0 there
//   at.id<T>()                  the ids, in the order in which load(const T*) returns their values
//   at.bits<T>(words)           a mask: whether bit id % 32 of words[id / 32] is set; in that order
//   at.revise<T>(x, words, ids, n, f)
//                               x, but f(value, id) for ids of the span whose bit is set, and
//                               for n of ids()
//   at.append(list, x, mask)    adds those x whose mask is set to a crew's list
//   at.keep<T>(x, words)        x, but 0 for ids whose bit is not set; in that order; where
//                               Scan::kSplits
//   at.reload(p)                as the scan's
//   at.all(x)                   x for every id
//   at.select(mask, a, b), at.maximum(a, b), at.fma(a, b, c)
//   at.exp2(x)                  2^x to 3e-7; below -126 at most 2^-126, 0 of -inf; infinity from
//                               128 on; NaN of NaN
//   at.exp2(x, scale)           2^(x * scale) for a double scale, to 1e-7 however large x or the
//                               scale; infinity or NaN from 128 on
//   at.exp2_product(x, factor)  2^(x * factor) to 4e-7, if Scan::kProducts says that it is cheaper
//                               than 2^(x * factor + a); infinity or NaN from 128 on, and possibly
//                               for finite x below -1e26
//
// A crew works on one item (CPU: threads; GPU: a workgroup); all of its threads run the body. A
// vocabulary is divided into `blocks` vocab_blocks.
//
//   crew.each_block(vocabulary, f)   f(scan, i, vocabulary.span(i)) for i < vocabulary.blocks, each
//                                    by one of its scans, between two barriers
//   crew.within(vocabulary, i, f)    f(scan, vocabulary.span(i)) -> int, the same for all threads
//   crew.leader(), crew.barrier()    as a group's
//   Crew::kStaged                    whether each step of the body is a launch. Where it is:
//   crew.share(n, f)                 f(scan, i) for i < n, as each_block
//   crew.alone()                     a crew of the calling scan by itself
//   crew.publish(p, x)               *p = x, by the leader of a scan
//   crew.last(arrived, n)            whether the other n - 1 crews have called it before; then what
//                                    they published before a barrier can be read. *arrived is 0 at
//                                    first
//   Crew::kLists                     whether it lists logits, as a single thread can
//   Crew::kHolds                     whether its threads hold up to Crew::kNumbers numbers of a row.
//                                    Where they do:
//   crew.together()                  a scan by all of its threads
//   crew.sample(span, f, out)        numbers f(at) of ids spread evenly over a span from 0 on. Returns
//                                    how many ids stand behind each
//   crew.list(), crew.fits(list)     an empty list of a scan's own; whether all of them had room for
//                                    what was added
//   crew.held(list)                  their numbers, if they had
//   list.size, list.out[i]           of a scan's own list: how many were added; those
//   crew.map(f, x)                   f(at, x) of each number
//   crew.sum(f, x, y...)             f(at, x, y...) summed over numbers; of x = -inf it must be 0
//   crew.estimate(f, x, y...)        likewise, by sums of fp32
//   crew.total(x)                    the sum of what its scans have
#pragma once

#include "tile/group.h"

// For the innermost scans of a kernel body. On a CPU all callers share one copy, because inlined
// copies could be contracted differently and then round differently. Calls are expensive on a GPU,
// and so are the registers of a second copy: a loop over scans stays one there.
#ifdef __AMDGCN__
#define BLOCKDRAFT_SCAN __attribute__((always_inline))
#define BLOCKDRAFT_ROLLED _Pragma("clang loop unroll(disable)")
#else
#define BLOCKDRAFT_SCAN __attribute__((noinline))
#define BLOCKDRAFT_ROLLED
#endif

namespace blockdraft {

struct Span {
  int first, stop, hole;  // ids first <= id < stop except the hole (-1: none)
};

struct Total {
  double sum;
  float peak;
};

struct Sums {
  double sum, other;
};

constexpr int kListSlack = 16;

struct Place {
  int index;  // -1: none
  double left;
};

// x as it is.
struct Same {
  template <class X>
  X operator()(X x) const {
    return x;
  }
};

// The terms of a scan of one thread.
template <class Term>
struct SerialTerms {
  int n;
  Term term;

  template <class N, class Join, class Of = Same>
  N fold(N none, Join join, Of of = {}) const {
    for (int i = 0; i < n; ++i) none = join(none, of(term(i)));
    return none;
  }
  template <class Of = Same>
  Place find(double r, Of of = {}) const {
    int last = -1;
    for (int i = 0; i < n; ++i) {
      const double own = of(term(i));
      if (own > 0) last = i;
      if (own > r) return {i, r};
      r -= own;
    }
    return {last, __builtin_inf()};  // rounding: the last one that has any
  }
};

// What scans of one thread have in common.
struct SerialScan {
  static constexpr int kHeld = 0;

  template <class Term>
  static SerialTerms<Term> terms(int n, Term term) {
    return {n, term};
  }
  template <class F>
  static void each(int n, F f) {
    for (int i = 0; i < n; ++i) f(i);
  }
  template <class Term, class Join, class F>
  static double chain(int n, double none, Term term, Join join, F f) {
    for (int i = 0; i < n; ++i) f(i, none = join(none, term(i)));
    return none;
  }
  template <class Holds>
  static int first(int n, Holds holds) {
    int i = 0;
    while (i < n && !holds(i)) ++i;
    return i;
  }
};

struct ScanExample {
  struct Term {
    template <class At, class Peak>
    auto operator()(At at, Peak& peak) const {
      const auto x = at.load(static_cast<const float*>(nullptr));
      peak = at.maximum(peak, at.fma(x, at.exp2(x), at.exp2(x, 1.0)));
      const uint32_t* const words = nullptr;
      auto ids = [] { return static_cast<const int32_t*>(nullptr); };
      const auto bits = at.template bits<float>(words);
      const auto other =
          at.template revise<float>(x, words, ids, 0, [](float v, int) { return v; });
      return at.select((at.template id<float>() == at.all(0)) & bits, other, at.all(0.0f));
    }
  };
  struct Number {
    double operator()(int) const { return 0; }
  };
  struct Join {
    double operator()(double a, double b) const { return a + b; }
  };
  struct Holds {
    bool operator()(int) const { return true; }
  };
  struct Vocabulary {
    int blocks;
    Span span(int) const { return {0, 0, -1}; }
  };
  struct Block {
    template <class Scan>
    int operator()(const Scan&, int, Span) const {
      return 0;
    }
    template <class Scan>
    int operator()(const Scan&, Span) const {
      return 0;
    }
  };
};

template <class Scan>
concept ScanTarget = requires(const Scan scan, Span span, const float* p) {
  scan.sum(span, ScanExample::Term()).sum;
  scan.crossing(span, ScanExample::Term(), 0.0);
  scan.terms(1, ScanExample::Number()).fold(0.0, ScanExample::Join()) +
      scan.first(1, ScanExample::Holds());
  scan.terms(1, ScanExample::Number()).find(0.0).left + Scan::kHeld;
  Scan::value(p);
  scan.leader() || Scan::kProducts;
};

template <class Crew>
concept CrewTarget =
    ScanTarget<typename Crew::Scan> && requires(Crew crew, ScanExample::Vocabulary vocabulary) {
      crew.each_block(vocabulary, ScanExample::Block());
      crew.within(vocabulary, 0, ScanExample::Block());
      crew.leader() || Crew::kStaged || Crew::kLists;
      crew.barrier();
    };

}  // namespace blockdraft
