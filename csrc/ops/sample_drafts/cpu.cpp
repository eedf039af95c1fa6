// CPU launcher of sample_drafts: a row is an item. A thread without an item helps with the
// vocab_blocks of the other threads' items.
#include <vector>

#include "ops/sample_drafts/body.h"
#include "tile/cpu/crew.h"

namespace blockdraft {

template <class T>
void launch(const SampleParams<T>& p, const Parallel& parallel) {
  const int blocks = p.vocabulary().blocks;
  const int64_t rows = int64_t(p.batch) * p.drafts;
  cpu::with_crews(rows, blocks, parallel, [&](cpu::Crew& crew, int64_t row) {
    thread_local std::vector<Partial> partials;
    thread_local std::vector<double> sums;
    thread_local std::vector<float> shortlist;
    partials.resize(blocks);
    sums.resize(blocks);
    const int room = p.drafter_sampling.may_truncate() ? kShortlistRoom : 0;
    shortlist.resize(room * blocks);
    const RowsMemory<T> memory{
        nullptr, partials.data(), sums.data(), nullptr, {shortlist.data(), room}, nullptr, 0, 0};
    DraftRow<cpu::Crew, T>(crew, p, row, memory).run();
  });
}

template void launch(const SampleParams<float>&, const Parallel&);
template void launch(const SampleParams<bf16>&, const Parallel&);
template void launch(const SampleParams<fp16>&, const Parallel&);

}  // namespace blockdraft
