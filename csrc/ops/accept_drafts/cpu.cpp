// CPU launcher of accept_drafts: a request is an item. A thread without an item helps with the
// vocab_blocks of the other threads' items.
#include "ops/sampling/cpu.h"
#include "ops/accept_drafts/body.h"

namespace blockdraft {

template <class T>
void launch(const AcceptParams<T>& p, const Parallel& parallel) {
  const int blocks = p.vocabulary().blocks;
  const bool truncates = p.target_sampling.may_truncate() || p.drafter_sampling.may_truncate();
  cpu::with_crews(p.batch, blocks, parallel, [&](cpu::Crew& crew, int64_t request) {
    thread_local cpu::SamplingMemory<T> own;
    const RowsMemory<T> memory =
        own.of(2 * p.drafts + 1, blocks, truncates, p.batch, parallel.threads);
    AcceptParams<T> of_request = p;
    of_request.penalties.ids = own.touched(p.penalties, request, p.vocabulary());
    Acceptance<cpu::Crew, T>(crew, of_request, int(request), memory).run();
  });
}

template void launch(const AcceptParams<float>&, const Parallel&);
template void launch(const AcceptParams<bf16>&, const Parallel&);
template void launch(const AcceptParams<fp16>&, const Parallel&);

}  // namespace blockdraft
