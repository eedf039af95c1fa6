// A CPU thread's memory for the rows that it works on, kept from call to call.
#pragma once

#include <memory>
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
    return {states_.data(),
            partials_.data(),
            sums_.data(),
            truncates ? lists(blocks, int(most<int64_t>(1, least(kParts, threads / items))))
                      : ListMemory{},
            kHeaderDoubles,
            0};
  }

 private:
  static constexpr int64_t kParts = 4;

  // Uninitialised: most of it is never touched.
  template <class S>
  struct Buffer {
    std::unique_ptr<S[]> memory;
    size_t size = 0;

    S* of(size_t wanted) {
      if (size < wanted) memory.reset(new S[size = wanted]);
      return memory.get();
    }
  };

  ListMemory lists(int blocks, int parts) {
    return {found_.of(size_t(blocks) * ListMemory::kBlockStride),
            starts_.of(blocks + 1),
            above_.of(blocks),
            list_.of(3 * ListMemory::kListStride),
            sizeof(T) == 2 ? counts_.of(size_t(parts) * ListMemory::kNumbers) : nullptr,
            parts};
  }

  std::vector<RowState<T>> states_;
  std::vector<Partial> partials_;
  std::vector<double> sums_;
  Buffer<float> found_, list_;
  Buffer<int> starts_;
  Buffer<double> above_;
  Buffer<uint32_t> counts_;
};

}  // namespace blockdraft::cpu
