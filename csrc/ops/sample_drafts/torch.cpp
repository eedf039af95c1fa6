// sample_drafts' arguments, which blockdraft.ops has checked, as parameters.
#include "ops/sampling/torch.h"
#include "ops/sample_drafts/params.h"

namespace blockdraft {

static void sample_drafts_torch(Optional penalties_touched, Optional penalties_counts,
                                Optional penalties_repetition, Optional penalties_presence,
                                Optional penalties_frequency, Optional penalties_bias_ids,
                                Optional penalties_bias, Tensor logits, Tensor draft_len,
                                Tensor seed, Tensor position, Optional uniforms,
                                Tensor drafter_sampling_temperature,
                                Optional drafter_sampling_top_k, Optional drafter_sampling_top_p,
                                Optional drafter_sampling_min_p, Optional allowed, bool greedy,
                                int64_t num_valid_vocab, int64_t vocab_block, int64_t mask_token,
                                Tensor draft_tokens, Tensor draft_lse, Optional workspace) {
  if (draft_tokens.numel() == 0) return;
  for_float_type(logits, [&]<class T>(T) {
    const SampleParams<T> p{
        .penalties = penalties_of(penalties_touched, penalties_counts, penalties_repetition,
                                  penalties_presence, penalties_frequency, penalties_bias_ids,
                                  penalties_bias, {}),
        .logits = view<const T, 2>(logits),
        .draft_len = data<int32_t>(draft_len),
        .seed = data<int64_t>(seed),
        .position = data<int32_t>(position),
        .uniforms = view<const double, 1>(uniforms),
        .drafter_sampling = sampling_of(drafter_sampling_temperature, drafter_sampling_top_k,
                                        drafter_sampling_top_p, drafter_sampling_min_p),
        .allowed = view<const uint32_t, 2>(allowed),
        .greedy = greedy,
        .num_valid_vocab = int(num_valid_vocab),
        .vocab_block = int(vocab_block),
        .mask_token = int(mask_token),
        .draft_tokens = view<int32_t, 1>(draft_tokens),
        .draft_lse = view<double, 2>(draft_lse),
        .workspace = view<double, 2>(workspace),
        .batch = int(draft_tokens.size(0)),
        .drafts = int(draft_tokens.size(1))};
    launch_on_device_of(logits, p);
  });
}

void register_sample_drafts(torch::stable::detail::StableLibrary& library) {
  BLOCKDRAFT_REGISTER(library, sample_drafts)
}

}  // namespace blockdraft
