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

  // The ids that this request's penalties touch, or null if it has none.
  const TouchedIds* touched(const PenaltiesParams& p, int64_t request, const Vocabulary& all) {
    if (!p.touched || p.none(int(request))) return nullptr;
    const uint32_t* const words = p.touched.at(request);
    const int32_t* const emitted = p.counts.at(request);
    const int count = ceil_div(all.size, 32);
    uint32_t* const others = others_.of(count);
    int* const starts = starts_of_ids_.of(all.blocks + 1);
    int* const ids = ids_.of(all.size);
    float* const counts = emitted_.of(all.size);
    for (int i = 0; i < count; ++i) others[i] = ~words[i];
    int size = 0;
    for (int block = 0; block < all.blocks; ++block) {
      const Span span = all.span(block);
      starts[block] = size;
      for (int i = span.first / 32; i < ceil_div(span.stop, 32); i += 2)
        for (uint64_t bits = words[i] | (i + 1 < count ? uint64_t(words[i + 1]) << 32 : 0); bits;
             bits &= bits - 1) {
          const int id = i * 32 + __builtin_ctzll(bits);
          if (id < span.first || id >= span.stop || id == span.hole) continue;
          ids[size] = id;
          counts[size++] = float(emitted[id]);
        }
    }
    starts[all.blocks] = size;
    touched_ = {all.block, starts, ids, counts, others};
    return &touched_;
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
  Buffer<float> found_, list_, emitted_;
  Buffer<int> starts_, starts_of_ids_, ids_;
  Buffer<uint32_t> others_;
  TouchedIds touched_;
  Buffer<double> above_;
  Buffer<uint32_t> counts_;
};

}  // namespace blockdraft::cpu
