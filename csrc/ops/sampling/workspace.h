// What the steps of a sampler store for each row of logits. On a GPU, where each step is a launch,
// every row has its own part of the workspace, in doubles: a header, then a fixed number for each
// vocab_block. blockdraft.ops._sampling has both counts too, and compares them at import.
#pragma once

#include "base/view.h"
#include "ops/sampling/truncate.h"

namespace blockdraft {

// What is decided before the draw: the number of accepted drafts, and the factor of p in the
// residual.
struct Verdict {
  int accepted, status;
  double scale;
};

constexpr int kDistributionDoubles = 13, kVerdictDoubles = 2;
constexpr int kHeaderDoubles = kDistributionDoubles + kVerdictDoubles;
constexpr int kVocabBlockDoubles = 4;  // a partial, a sum, a surplus

static_assert(sizeof(Distribution<float>) == kDistributionDoubles * sizeof(double));
static_assert(sizeof(Verdict) == kVerdictDoubles * sizeof(double));
static_assert(sizeof(Partial) == 2 * sizeof(double));

// The memory of a request's rows.
template <class T>
struct RowsMemory {
  Distribution<T>* distributions;
  Partial* first_partials;
  double* first_sums;
  double* first_surplus;
  ListMemory lists;  // on a CPU
  Verdict* verdict;
  int64_t header_stride;  // doubles from a row's distribution to that of the next
  int64_t block_stride;   // likewise for the rest; 0 on a CPU, where all rows share one memory

  static RowsMemory staged(double* memory, int64_t row_stride, int blocks) {
    double* const partials = memory + kHeaderDoubles;
    double* const sums = partials + 2 * blocks;
    return {reinterpret_cast<Distribution<T>*>(memory),
            reinterpret_cast<Partial*>(partials),
            sums,
            sums + blocks,
            {},
            reinterpret_cast<Verdict*>(memory + kDistributionDoubles),
            row_stride,
            row_stride};
  }

  Distribution<T>& distribution(int row) const {
    return *moved(distributions, row * header_stride);
  }
  Partial* partials(int row) const { return moved(first_partials, row * block_stride); }
  double* sums(int row) const { return first_sums + row * block_stride; }
  double* surplus(int row) const { return first_surplus + row * block_stride; }

 private:
  template <class S>
  static S* moved(S* p, int64_t doubles) {
    return reinterpret_cast<S*>(reinterpret_cast<double*>(p) + doubles);
  }
};

}  // namespace blockdraft
