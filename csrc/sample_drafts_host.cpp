// CPU launcher of sample_drafts.
#include "sample_drafts.h"

#include "crew_host.h"

namespace blockdraft {

template <class T>
void sample_drafts_host(const SampleParams<T>& p, const Parallel& parallel) {
  const Vocabulary vocabulary(p.valid, p.mask_token);
  with_crews(int64_t(p.batch) * p.drafts, vocabulary, p.threads, parallel,
             [&](HostCrew& crew, int64_t row) {
               thread_local std::vector<Partial> partials;
               partials.resize(vocabulary.blocks);
               DraftRow<HostCrew, T>(crew, p, row, partials.data()).run();
             });
}

template void sample_drafts_host(const SampleParams<float>&, const Parallel&);
template void sample_drafts_host(const SampleParams<bf16>&, const Parallel&);
template void sample_drafts_host(const SampleParams<fp16>&, const Parallel&);

}  // namespace blockdraft
