// How a launcher gets threads without knowing whose they are.
#pragma once

#include <stdint.h>

#include <functional>

namespace blockdraft {

struct Parallel {
  using Part = std::function<void(int64_t begin, int64_t end)>;

  // body(begin, end) over parts of 0..n that together cover it, on as many threads as the caller
  // wants to lend.
  std::function<void(int64_t n, int64_t grain, const Part& body)> run;
  int threads = 1;  // at most

  void operator()(int64_t n, int64_t grain, const Part& body) const { run(n, grain, body); }
};

}  // namespace blockdraft
