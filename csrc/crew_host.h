// Host threads that work on rows of logits, block by block (see sampling.h). A thread takes items
// of its own; where none is left, it takes blocks of the rows that the others are at. Who computes
// a block does not change its bits.
#pragma once

#include <atomic>
#include <thread>
#include <vector>

#include "parallel.h"
#include "sampling.h"
#include "tile/host_scan.h"

namespace blockdraft {

// How to wait for other threads: for their next blocks, some microseconds away unless they do not
// run.
class Patience {
 public:
  void wait() {
    if (++waited_ > 1000) return std::this_thread::yield();
#ifdef __x86_64__
    __builtin_ia32_pause();
#endif
  }

 private:
  int waited_ = 0;
};

// Where a thread lays out its current blocks.
class alignas(64) Desk {
 public:
  // f(i) for i < n, by this thread and those of `threads` that help.
  template <class F>
  void share(int n, int threads, const F& f) {
    const Work work{[](const void* f, int i) { (*static_cast<const F*>(f))(i); }, &f};
    work_.store(&work, std::memory_order_relaxed);
    helped_.store(0, std::memory_order_relaxed);
    const uint64_t round = (state_.load(std::memory_order_relaxed) >> 32) + 1;
    state_.store(round << 32 | uint64_t(n) << 16, std::memory_order_release);
    int own = 0;
    while (const int count = take(threads)) own += count;
    for (Patience patience; helped_.load(std::memory_order_acquire) < n - own;) patience.wait();
  }

  bool help(int threads) {
    const int count = take(threads);
    if (count) helped_.fetch_add(count, std::memory_order_release);
    return count;
  }

 private:
  struct Work {
    void (*call)(const void* f, int i);
    const void* f;
  };
  static_assert(kMostBlocks < 1 << 16);

  // Does some of the blocks and returns how many: neighbours, as memory is best read, but fewer the
  // fewer are left.
  int take(int threads) {
    uint64_t state = state_.load(std::memory_order_acquire);
    for (;;) {
      const int taken = state & 0xffff, n = state >> 16 & 0xffff;
      if (taken == n) return 0;
      const int count = most(1, (n - taken) / threads);
      const Work* work =
          work_.load(std::memory_order_relaxed);  // of this round, or the exchange fails
      if (!state_.compare_exchange_weak(state, state + count, std::memory_order_acq_rel)) continue;
      for (int i = taken; i < taken + count; ++i) work->call(work->f, i);
      return count;
    }
  }

  std::atomic<uint64_t> state_{0};  // a round's number, how many blocks it has, how many are taken
  std::atomic<const Work*> work_{nullptr};
  std::atomic<int> helped_{0};
};

class HostCrew {
 public:
  using Scan = host::Scan;
  static constexpr bool kStaged = false;

  // `desk`: null for the calling thread alone.
  HostCrew(const Vocabulary& vocabulary, Desk* desk, int threads)
      : desk_(desk), threads_(threads), sums_(vocabulary.blocks) {}

  template <class F>
  void each_block(const Vocabulary& vocabulary, F f) const {
    auto block = [&](int i) { f(Scan(), i, vocabulary.span(i)); };
    if (desk_ && vocabulary.blocks > 1) return desk_->share(vocabulary.blocks, threads_, block);
    for (int i = 0; i < vocabulary.blocks; ++i) block(i);
  }
  template <class F>
  static int within(const Vocabulary& vocabulary, int block, F f) {
    return f(Scan(), vocabulary.span(block));
  }
  double* sums() { return sums_.data(); }
  static bool leader() { return true; }
  static void barrier() {}

 private:
  Desk* desk_;
  int threads_;
  std::vector<double> sums_;
};

// run(crew, item) for every item.
template <class Run>
void with_crews(int64_t items, const Vocabulary& vocabulary, int threads, const Parallel& parallel,
                Run run) {
  threads = int(least<int64_t>(threads, items * vocabulary.blocks));
  std::vector<Desk> desks(threads);
  std::atomic<int64_t> taken{0}, unfinished{items};
  parallel(threads, 1, [&](int64_t thread, int64_t) {
    HostCrew crew(vocabulary, threads > 1 ? &desks[thread] : nullptr, threads);
    for (int64_t item; (item = taken.fetch_add(1, std::memory_order_relaxed)) < items;
         unfinished.fetch_sub(1, std::memory_order_release))
      run(crew, item);
    for (Patience patience; unfinished.load(std::memory_order_acquire) > 0;) {
      bool helped = false;
      for (Desk& desk : desks) helped |= desk.help(threads);
      if (helped)
        patience = {};
      else
        patience.wait();
    }
  });
}

}  // namespace blockdraft
