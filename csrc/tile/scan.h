// Scans: what a kernel body may use to walk over long rows of numbers. Each target implements Scan, a group (see tile.h) that
// works on one span of ids at a time: host_scan.h, cdna_scan.h, sim_scan.h. All threads of the group call a primitive with the
// same arguments and get the same result, which the span and f alone determine.
//
//   scan.sum(span, f)           f(at, peak) summed over the ids of the span; f may raise `peak`, which starts at -inf
//   scan.crossing(span, f, r)   the first id at which the running sum of f exceeds r. If none does, by rounding, the last id
//                               where f is positive; -1 if f is nowhere positive
//   Scan::value(p)              *p as a float
//
// f sees several ids at a time: `at` is a type of the target that stands for them, and computes with its Float and Int as with
// float and int (sums, products and comparisons of equals).
//
//   at.load(p)                  p[id], -inf for ids that the span leaves out: f must be 0 there
//   at.id()                     the ids
//   at.all(x)                   the same number for each
//   at.select(mask, a, b), at.maximum(a, b), at.fma(a, b, c)
//   at.exp2(x)                  2^x for x < 127, to 3e-7; 0 below -126; NaN for NaN
#pragma once

#include "tile.h"

namespace blockdraft {

struct Span {
  int first, stop, hole;  // ids first <= id < stop but for the hole (-1: none)
};

struct Total {
  double sum;
  float peak;
};

}  // namespace blockdraft
