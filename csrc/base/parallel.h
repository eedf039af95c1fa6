// A parallel loop that the caller provides, so that launchers depend on no thread pool.
#pragma once

#include <stdint.h>

#include <functional>

namespace blockdraft {

struct Parallel {
  using Part = std::function<void(int64_t begin, int64_t end)>;

  // Calls body(begin, end) on ranges that together cover 0..n, on the caller's threads.
  std::function<void(int64_t n, int64_t grain, const Part& body)> run;
  int threads = 1;  // at most

  void operator()(int64_t n, int64_t grain, const Part& body) const { run(n, grain, body); }
};

}  // namespace blockdraft
