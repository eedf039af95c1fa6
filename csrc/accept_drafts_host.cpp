// CPU launcher of accept_drafts.
#include "accept_drafts.h"

#include "crew_host.h"

namespace blockdraft {

template <class T>
void accept_drafts_host(const AcceptParams<T>& p, const Parallel& parallel) {
  const Vocabulary vocabulary(p.valid, p.mask_token);
  with_crews(p.batch, vocabulary, p.threads, parallel, [&](HostCrew& crew, int64_t request) {
    thread_local std::vector<Law<T>> laws;
    thread_local std::vector<Partial> partials;
    laws.resize(2 * p.drafts + 1), partials.resize(vocabulary.blocks);
    Acceptance<HostCrew, T>(crew, p, int(request),
                            {laws.data(), partials.data(), nullptr, nullptr, nullptr})
        .run();
  });
}

template void accept_drafts_host(const AcceptParams<float>&, const Parallel&);
template void accept_drafts_host(const AcceptParams<bf16>&, const Parallel&);
template void accept_drafts_host(const AcceptParams<fp16>&, const Parallel&);

}  // namespace blockdraft
