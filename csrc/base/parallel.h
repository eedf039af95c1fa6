// A parallel loop that the caller provides, so that launchers depend on no thread pool.
#pragma once

#include <stdint.h>

#include <atomic>
#include <functional>

namespace blockdraft {

struct Parallel {
  using Part = std::function<void(int64_t begin, int64_t end)>;

  // Calls body(begin, end) on ranges that together cover 0..n, on the caller's threads.
  std::function<void(int64_t n, int64_t grain, const Part& body)> run;
  int threads = 1;  // at most
  // Multiply-adds that are worth waking the other threads: about 10 us.
  int64_t worth = 1 << 19;

  void operator()(int64_t n, int64_t grain, const Part& body) const { run(n, grain, body); }

  // Calls f(i) for i < n. Each thread takes the next i that is left, since they differ in work.
  // `work`: multiply-adds of all together, roughly; for a few the other threads are not woken.
  template <class F>
  void each(int64_t n, int64_t work, F f) const {
    if (work < worth) {
      for (int64_t i = 0; i < n; ++i) f(i);
      return;
    }
    std::atomic<int64_t> taken{0};
    run(n, 1, [&](int64_t, int64_t) {
      for (int64_t i; (i = taken.fetch_add(1, std::memory_order_relaxed)) < n;) f(i);
    });
  }
};

}  // namespace blockdraft
