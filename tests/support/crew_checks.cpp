// Four threads on items of few and many vocab_blocks. Every round updates each vocab_block's
// number, so that a vocab_block which is lost, done twice or read too early changes the result. For
// ThreadSanitizer.
#include <cstdio>

#include "ops/sampling/distribution.h"
#include "tile/cpu/crew.h"

using namespace blockdraft;

static void threads_of(int64_t n, int64_t, const Parallel::Part& body) {
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < n; ++i) threads.emplace_back([&body, i] { body(i, i + 1); });
  for (auto& thread : threads) thread.join();
}

int main() {
  constexpr int kRounds = 20;
  for (int repeat = 0; repeat < 50; ++repeat)
    for (int ids : {1, 9000, 40000})
      for (int items : {1, 3, 5}) {
        const Vocabulary vocabulary(ids, -1, 4096);
        std::vector<double> found(items);
        const Parallel parallel{threads_of, 4};
        cpu::with_crews(items, vocabulary.blocks, parallel, [&](cpu::Crew& crew, int64_t item) {
          std::vector<double> sums(vocabulary.blocks);
          for (int round = 0; round < kRounds; ++round)
            crew.each_block(vocabulary, [&](const auto&, int i, Span span) {
              sums[i] = 2 * sums[i] + span.first + item;
            });
          for (double sum : sums) found[item] += sum;
        });
        for (int item = 0; item < items; ++item) {
          double expected = 0;
          for (int i = 0; i < vocabulary.blocks; ++i)
            expected += ((1 << kRounds) - 1.0) * (vocabulary.span(i).first + item);
          if (found[item] != expected)
            return std::printf("%d ids, item %d of %d: %g, not %g\n", ids, item, items, found[item],
                               expected),
                   1;
        }
      }
}
