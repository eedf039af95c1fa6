// CPU launcher of accept_drafts: a request is an item. A thread without an item helps with the
// vocab_blocks of the other threads' items.
#include <vector>

#include "ops/accept_drafts/body.h"
#include "tile/cpu/crew.h"

namespace blockdraft {

template <class T>
void launch(const AcceptParams<T>& p, const Parallel& parallel) {
  const Vocabulary vocabulary = p.vocabulary();
  cpu::with_crews(p.batch, vocabulary.blocks, parallel, [&](cpu::Crew& crew, int64_t request) {
    thread_local std::vector<Distribution<T>> distributions;
    thread_local std::vector<Partial> partials;
    thread_local std::vector<double> sums;
    thread_local std::vector<float> shortlist;
    distributions.resize(2 * p.drafts + 1);
    partials.resize(vocabulary.blocks);
    sums.resize(vocabulary.blocks);
    const bool truncates = p.target_sampling.may_truncate() || p.drafter_sampling.may_truncate();
    const int room = truncates ? kShortlistRoom : 0;
    shortlist.resize(room * vocabulary.blocks);
    const RowsMemory<T> memory{
        distributions.data(),     partials.data(), sums.data(),          nullptr,
        {shortlist.data(), room}, nullptr,         kDistributionDoubles, 0};
    Acceptance<cpu::Crew, T>(crew, p, int(request), memory).run();
  });
}

template void launch(const AcceptParams<float>&, const Parallel&);
template void launch(const AcceptParams<bf16>&, const Parallel&);
template void launch(const AcceptParams<fp16>&, const Parallel&);

}  // namespace blockdraft
