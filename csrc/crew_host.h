// Host threads that work on a row of logits, block by block (see sampling.h).
#pragma once

#include <atomic>
#include <vector>

#include "parallel.h"
#include "sampling.h"
#include "tile/host_scan.h"

namespace blockdraft {

class HostCrew {
 public:
  using Scan = host::Scan;
  static constexpr bool kStaged = false;

  // `parallel`: null for the calling thread alone.
  HostCrew(const Vocabulary& vocabulary, const Parallel* parallel) : parallel_(parallel), sums_(vocabulary.blocks) {}

  template <class F>
  void each_block(const Vocabulary& vocabulary, F f) const {
    auto range = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) f(Scan(), int(i), vocabulary.span(int(i)));
    };
    if (parallel_ && vocabulary.blocks > 1) (*parallel_)(vocabulary.blocks, 1, range);
    else range(0, vocabulary.blocks);
  }
  template <class F>
  static int within(const Vocabulary& vocabulary, int block, F f) { return f(Scan(), vocabulary.span(block)); }
  double* sums() { return sums_.data(); }
  static bool leader() { return true; }
  static void barrier() {}

 private:
  const Parallel* parallel_;
  std::vector<double> sums_;
};

// run(crew, item) for every item: an item to a thread, or, where there are few, all threads on one after the other.
template <class Run>
void with_crews(int64_t items, const Vocabulary& vocabulary, int threads, const Parallel& parallel, Run run) {
  if (items < 2 * threads) {
    HostCrew crew(vocabulary, threads > 1 ? &parallel : nullptr);
    for (int64_t item = 0; item < items; ++item) run(crew, item);
    return;
  }
  std::atomic<int64_t> taken{0};
  parallel(items, 1, [&](int64_t, int64_t) {
    HostCrew crew(vocabulary, nullptr);
    for (int64_t item; (item = taken.fetch_add(1, std::memory_order_relaxed)) < items;) run(crew, item);
  });
}

}  // namespace blockdraft
