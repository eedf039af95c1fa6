// CPU launcher of sample_drafts: a row is an item. A thread without an item helps with the
// vocab_blocks of the other threads' items.
#include "ops/sampling/cpu.h"
#include "ops/sample_drafts/body.h"

namespace blockdraft {

template <class T>
void launch(const SampleParams<T>& p, const Parallel& parallel) {
  const int blocks = p.vocabulary().blocks;
  const bool truncates = p.drafter_sampling.may_truncate();
  const int64_t rows = int64_t(p.batch) * p.drafts;
  cpu::with_crews(rows, blocks, parallel, [&](cpu::Crew& crew, int64_t row) {
    thread_local cpu::SamplingMemory<T> own;
    const RowsMemory<T> memory = own.of(0, blocks, truncates, rows, parallel.threads);
    SampleParams<T> of_request = p;
    of_request.penalties.ids = own.touched(p.penalties, row / p.drafts, p.vocabulary());
    DraftRow<cpu::Crew, T>(crew, of_request, row, memory).run();
  });
}

template void launch(const SampleParams<float>&, const Parallel&);
template void launch(const SampleParams<bf16>&, const Parallel&);
template void launch(const SampleParams<fp16>&, const Parallel&);

}  // namespace blockdraft
