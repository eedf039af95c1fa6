// A CPU thread's memory for the rows that it works on, kept from call to call.
#pragma once

#include <vector>

#include "ops/sampling/workspace.h"
#include "tile/cpu/crew.h"

namespace blockdraft::cpu {

template <class T>
class SamplingMemory {
 public:
  // For one request's `rows` distributions. `items`: of this call, among `threads` threads; where
  // these are more, several of them work on an item.
  RowsMemory<T> of(int rows, int blocks, bool truncates, int64_t items, int threads) {
    states_.resize(rows);
    partials_.resize(blocks);
    sums_.resize(blocks);
    const int room = truncates ? kShortlistRoom : 0;
    shortlist_.resize(room * blocks);
    const bool tallies = truncates && sizeof(T) == 2;
    const int parts = tallies ? int(most<int64_t>(1, least<int64_t>(kParts, threads / items))) : 0;
    const size_t counts = size_t(parts) * TallyMemory::kNumbers;
    if (counts_.size() < counts) counts_.resize(counts);
    if (tallies) list_.resize(TallyMemory::kListSize);
    return {states_.data(),
            partials_.data(),
            sums_.data(),
            {shortlist_.data(), room},
            {counts_.data(), list_.data(), parts},
            kHeaderDoubles,
            0};
  }

 private:
  static constexpr int kParts = 4;

  std::vector<RowState<T>> states_;
  std::vector<Partial> partials_;
  std::vector<double> sums_;
  std::vector<float> shortlist_, list_;
  std::vector<uint32_t> counts_;
};

}  // namespace blockdraft::cpu
