// accept_drafts on torch tensors, which blockdraft.ops has checked: arguments -> parameters -> the
// device's launcher.
#include "accept_drafts.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>

#include "torch_launch.h"

namespace blockdraft {

using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

template <class T>
void accept_drafts_host(const AcceptParams<T>&, const Parallel&);
template <class T>
void accept_drafts_hip(const AcceptParams<T>&, void* stream);

static void accept_drafts_torch(Tensor target, Tensor tokens, Optional draft, Optional draft_lse,
                                Tensor draft_len, Tensor branch, int64_t mask_rows, Tensor seed,
                                Tensor position, Optional uniforms, Tensor target_temperature,
                                Optional target_top_k, Optional target_top_p,
                                Tensor drafter_temperature, Optional drafter_top_k,
                                Optional drafter_top_p, Optional mix, bool dirac, std::string rule,
                                int64_t num_valid_vocab, int64_t mask_token, Optional remaining,
                                Tensor accepted, Tensor next_token, Tensor proposal, Tensor shift,
                                Tensor next_draft_len, Tensor status, Optional logprob,
                                Optional workspace) {
  if (draft_len.numel() == 0) return;
  for_float_type(target, [&](auto type) {
    using T = decltype(type);
    AcceptParams<T> p{};
    p.target = data<T>(target), p.target_request = target.stride(0),
    p.target_row = target.stride(1);
    if (draft)
      p.draft = data<T>(*draft), p.draft_request = draft->stride(0), p.draft_row = draft->stride(1);
    p.tokens = data<int32_t>(tokens), p.tokens_row = tokens.stride(0);
    p.draft_len = data<int32_t>(draft_len), p.position = data<int32_t>(position),
    p.seed = data<int64_t>(seed);
    p.branch = data<int32_t>(branch), p.branch_row = branch.stride(0);
    p.remaining = data_or_null<int32_t>(remaining), p.mix = data_or_null<float>(mix);
    if (uniforms) p.uniforms = data<double>(*uniforms), p.uniforms_row = uniforms->stride(0);
    if (draft_lse) p.draft_lse = data<float>(*draft_lse), p.lse_row = draft_lse->stride(0);
    p.target_sampling = {data<float>(target_temperature), data_or_null<int32_t>(target_top_k),
                         data_or_null<float>(target_top_p)};
    p.drafter_sampling = {data<float>(drafter_temperature), data_or_null<int32_t>(drafter_top_k),
                          data_or_null<float>(drafter_top_p)};
    p.accepted = data<int32_t>(accepted), p.next_token = data<int32_t>(next_token),
    p.proposal = data<int32_t>(proposal);
    p.shift = data<int32_t>(shift), p.next_draft_len = data<int32_t>(next_draft_len),
    p.status = data<int32_t>(status);
    if (logprob) p.logprob = data<float>(*logprob), p.logprob_row = logprob->stride(0);
    p.workspace = data_or_null<double>(workspace);
    p.batch = int(draft_len.size(0)), p.drafts = int(tokens.size(1)),
    p.valid = int(num_valid_vocab), p.mask_token = int(mask_token);
    p.mask_rows = int(mask_rows), p.proposals = int(branch.size(1)),
    p.threads = int(torch::stable::get_num_threads());
    p.mode = rule == "block" ? kBlock : rule == "greedy" ? kGreedy : kToken, p.dirac = dirac;
    BLOCKDRAFT_LAUNCH(target, accept_drafts, p);
  });
}

void register_accept_drafts(torch::stable::detail::StableLibrary& library) {
  library.impl("accept_drafts_cpp", TORCH_BOX(&accept_drafts_torch));
}

}  // namespace blockdraft
