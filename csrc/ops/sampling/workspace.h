// What the steps of a sampler store for each row of logits. On a GPU, where each step is a launch,
// every row has its own part of the workspace, in doubles: a header, then a fixed number for each
// vocab_block. blockdraft.ops._sampling has both counts too, and compares them at import.
#pragma once

#include "base/view.h"
#include "ops/sampling/truncate.h"

namespace blockdraft {

// What is known of a row before the draw.
template <class T>
struct RowState {
  Distribution<T> distribution;
  double chance;    // the probability of the row's draft
  double carry;     // the block rule's p_i, of the drafts up to this row's
  double residual;  // the sum of the row's residual weights, on a GPU
  // Of the row's draft, where states are `within`: the uniform that decides on it, its logit.
  double uniform;
  float logit;
  int32_t token;
  int32_t arrived;  // of the request's first row: crews of the last launch
};

constexpr int kHeaderDoubles = 20;
constexpr int kVocabBlockDoubles = 3;  // a partial, a sum

static_assert(sizeof(RowState<float>) == kHeaderDoubles * sizeof(double));
static_assert(sizeof(Partial) == 2 * sizeof(double));

// The memory of a request's rows.
template <class T>
struct RowsMemory {
  RowState<T>* states;
  Partial* first_partials;
  double* first_sums;
  ListMemory lists;            // on a CPU
  const TouchedIds* touched;   // likewise, of the request's penalties; null: none
  int64_t header_stride;       // doubles from a row's state to that of the next
  int64_t block_stride;        // likewise for the rest; 0 on a CPU, where all rows share one memory
  int32_t* arrived = nullptr;  // on a GPU
  bool within = false;         // whether the states are in a workgroup's own memory

  static RowsMemory staged(double* memory, int64_t row_stride, int blocks) {
    double* const partials = memory + kHeaderDoubles;
    double* const sums = partials + 2 * blocks;
    auto* const states = reinterpret_cast<RowState<T>*>(memory);
    return {states,     reinterpret_cast<Partial*>(partials),
            sums,       {},
            nullptr,    row_stride,
            row_stride, &states->arrived};
  }
  // Keeps the rows' states there, one after the other.
  void keep_states(void* memory) {
    states = reinterpret_cast<RowState<T>*>(memory);
    header_stride = kHeaderDoubles;
    within = true;
  }

  RowState<T>& state(int row) const { return *moved(states, row * header_stride); }
  Partial* partials(int row) const { return moved(first_partials, row * block_stride); }
  double* sums(int row) const { return first_sums + row * block_stride; }

 private:
  template <class S>
  static S* moved(S* p, int64_t doubles) {
    return reinterpret_cast<S*>(reinterpret_cast<double*>(p) + doubles);
  }
};

}  // namespace blockdraft
