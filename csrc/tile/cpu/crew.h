// A crew of a CPU: threads that work on rows of logits, vocab_block by vocab_block. A thread takes
// items; when none is left, it helps with the vocab_blocks of the other threads' items. A
// vocab_block's bits do not depend on the thread that computes it.
#pragma once

#include <atomic>
#include <thread>
#include <vector>

#include "base/parallel.h"
#include "tile/cpu/scan.h"

namespace blockdraft::cpu {

// Waits for the next vocab_blocks of other threads. These come within microseconds, so it spins;
// but if a thread is not running, yielding may give it this core.
class Backoff {
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

// The work that a thread currently shares with others.
class alignas(64) SharedWork {
 public:
  static constexpr int kMaxParts = 0xffff;

  // f(i) for i < n, by this thread and all that call help(). `threads`: how many there are.
  template <class F>
  void share(int n, int threads, const F& f) {
    const Call call{[](const void* f, int i) { (*static_cast<const F*>(f))(i); }, &f};
    call_.store(&call, std::memory_order_relaxed);
    helped_.store(0, std::memory_order_relaxed);
    const uint64_t round = (state_.load(std::memory_order_relaxed) >> 32) + 1;
    state_.store(round << 32 | uint64_t(n) << 16, std::memory_order_release);
    int own = 0;
    while (const int count = take(threads)) own += count;
    for (Backoff backoff; helped_.load(std::memory_order_acquire) < n - own;) backoff.wait();
  }

  bool help(int threads) {
    const int count = take(threads);
    if (count) helped_.fetch_add(count, std::memory_order_release);
    return count;
  }

 private:
  struct Call {
    void (*function)(const void* f, int i);
    const void* f;
  };

  // Does some of the parts and returns how many. They are adjacent, for sequential reads, and fewer
  // towards the end, for balance.
  int take(int threads) {
    uint64_t state = state_.load(std::memory_order_acquire);
    for (;;) {
      const int taken = state & kMaxParts;
      const int n = state >> 16 & kMaxParts;
      if (taken == n) return 0;
      const int count = most(1, (n - taken) / threads);
      // Of this round, or else the exchange fails.
      const Call* call = call_.load(std::memory_order_relaxed);
      if (!state_.compare_exchange_weak(state, state + count, std::memory_order_acq_rel)) continue;
      for (int i = taken; i < taken + count; ++i) call->function(call->f, i);
      return count;
    }
  }

  // The round's number (32 bits), its number of parts (16) and of parts taken (16).
  std::atomic<uint64_t> state_{0};
  std::atomic<const Call*> call_{nullptr};
  std::atomic<int> helped_{0};
};

class Crew {
 public:
  using Scan = cpu::Scan;
  static constexpr bool kStaged = false;
  static constexpr bool kLists = true, kHolds = false;

  // `work`: null for the calling thread alone.
  Crew(SharedWork* work, int threads) : work_(work), threads_(threads) {}

  template <class Vocabulary, class F>
  void each_block(const Vocabulary& vocabulary, F f) const {
    auto block = [&](int i) { f(Scan(), i, vocabulary.span(i)); };
    const bool shared =
        work_ && vocabulary.blocks > 1 && vocabulary.blocks <= SharedWork::kMaxParts;
    if (shared) return work_->share(vocabulary.blocks, threads_, block);
    for (int i = 0; i < vocabulary.blocks; ++i) block(i);
  }
  template <class Vocabulary, class F>
  static int within(const Vocabulary& vocabulary, int block, F f) {
    return f(Scan(), vocabulary.span(block));
  }
  static bool leader() { return true; }
  static void barrier() {}

 private:
  SharedWork* work_;
  int threads_;
};

static_assert(CrewTarget<Crew>);

// Calls run(crew, item) for every item; an item has rows of `blocks` vocab_blocks.
template <class Run>
void with_crews(int64_t items, int blocks, const Parallel& parallel, Run run) {
  const int threads = int(least<int64_t>(parallel.threads, items * blocks));
  std::vector<SharedWork> works(threads);
  std::atomic<int64_t> taken{0};
  std::atomic<int64_t> unfinished{items};
  parallel(threads, 1, [&](int64_t thread, int64_t) {
    Crew crew(threads > 1 ? &works[thread] : nullptr, threads);
    for (;;) {
      const int64_t item = taken.fetch_add(1, std::memory_order_relaxed);
      if (item >= items) break;
      run(crew, item);
      unfinished.fetch_sub(1, std::memory_order_release);
    }
    for (Backoff backoff; unfinished.load(std::memory_order_acquire) > 0;) {
      bool helped = false;
      for (SharedWork& work : works) helped |= work.help(threads);
      if (helped)
        backoff = {};
      else
        backoff.wait();
    }
  });
}

}  // namespace blockdraft::cpu
