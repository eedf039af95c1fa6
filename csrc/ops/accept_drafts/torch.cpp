// accept_drafts' arguments, which blockdraft.ops has checked, as parameters.
#include "ops/sampling/torch.h"
#include "ops/accept_drafts/params.h"

namespace blockdraft {

static void accept_drafts_torch(
    Optional penalties_touched, Optional penalties_counts, Optional penalties_repetition,
    Optional penalties_presence, Optional penalties_frequency, Optional penalties_bias_ids,
    Optional penalties_bias, Tensor target_logits, Tensor draft_tokens, Optional draft_logits,
    Optional draft_lse, Tensor draft_len, Tensor branch, int64_t mask_rows, Tensor seed,
    Tensor position, Optional uniforms, Tensor target_sampling_temperature,
    Optional target_sampling_top_k, Optional target_sampling_top_p, Optional target_sampling_min_p,
    Tensor drafter_sampling_temperature, Optional drafter_sampling_top_k,
    Optional drafter_sampling_top_p, Optional drafter_sampling_min_p, Optional allowed,
    Optional draft_allowed, Optional mix, bool dirac, int64_t rule, int64_t num_valid_vocab,
    int64_t vocab_block, int64_t mask_token, Optional remaining, Tensor accepted, Tensor next_token,
    Tensor proposal, Tensor shift, Tensor next_draft_len, Tensor status, Optional target_logprob,
    Optional top_tokens, Optional top_logprobs, Optional workspace) {
  if (draft_len.numel() == 0) return;
  for_float_type(target_logits, [&]<class T>(T) {
    const AcceptParams<T> p{
        .penalties = penalties_of(penalties_touched, penalties_counts, penalties_repetition,
                                  penalties_presence, penalties_frequency, penalties_bias_ids,
                                  penalties_bias, view<const int32_t, 1>(draft_tokens)),
        .target_logits = view<const T, 2>(target_logits),
        .draft_tokens = view<const int32_t, 1>(draft_tokens),
        .draft_logits = view<const T, 2>(draft_logits),
        .draft_lse = view<const double, 2>(draft_lse),
        .draft_len = data<int32_t>(draft_len),
        .branch = view<const int32_t, 1>(branch),
        .mask_rows = int(mask_rows),
        .seed = data<int64_t>(seed),
        .position = data<int32_t>(position),
        .uniforms = view<const double, 1>(uniforms),
        .target_sampling = sampling_of(target_sampling_temperature, target_sampling_top_k,
                                       target_sampling_top_p, target_sampling_min_p),
        .drafter_sampling = sampling_of(drafter_sampling_temperature, drafter_sampling_top_k,
                                        drafter_sampling_top_p, drafter_sampling_min_p),
        .allowed = view<const uint32_t, 2>(allowed),
        .draft_allowed = view<const uint32_t, 2>(draft_allowed),
        .mix = data<float>(mix),
        .dirac = dirac,
        .rule = int(rule),
        .num_valid_vocab = int(num_valid_vocab),
        .vocab_block = int(vocab_block),
        .mask_token = int(mask_token),
        .remaining = data<int32_t>(remaining),
        .accepted = data<int32_t>(accepted),
        .next_token = data<int32_t>(next_token),
        .proposal = data<int32_t>(proposal),
        .shift = data<int32_t>(shift),
        .next_draft_len = data<int32_t>(next_draft_len),
        .status = data<int32_t>(status),
        .target_logprob = view<float, 1>(target_logprob),
        .top_tokens = view<int32_t, 2>(top_tokens),
        .top_logprobs = view<float, 2>(top_logprobs),
        .workspace = view<double, 2>(workspace),
        .batch = int(draft_len.size(0)),
        .drafts = int(draft_tokens.size(1)),
        .proposals = int(branch.size(1)),
        .top = top_tokens ? int(top_tokens->size(2)) : 0};
    launch_on_device_of(target_logits, p);
  });
}

void register_accept_drafts(torch::stable::detail::StableLibrary& library) {
  BLOCKDRAFT_REGISTER(library, accept_drafts)
}

}  // namespace blockdraft
