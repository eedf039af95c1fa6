// sample_drafts on torch tensors, which blockdraft.ops has checked: arguments -> parameters -> the
// device's launcher.
#include "sample_drafts.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "torch_launch.h"

namespace blockdraft {

using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

template <class T>
void sample_drafts_host(const SampleParams<T>&, const Parallel&);
template <class T>
void sample_drafts_hip(const SampleParams<T>&, void* stream);

static void sample_drafts_torch(Tensor logits, Tensor draft_len, Tensor seed, Tensor position,
                                Optional uniforms, Tensor temperature, Optional top_k,
                                Optional top_p, bool greedy, int64_t num_valid_vocab,
                                int64_t mask_token, Tensor tokens, Tensor lse, Optional workspace) {
  if (tokens.numel() == 0) return;
  for_float_type(logits, [&](auto type) {
    using T = decltype(type);
    SampleParams<T> p{};
    p.logits = data<T>(logits), p.logits_request = logits.stride(0),
    p.logits_row = logits.stride(1);
    p.draft_len = data<int32_t>(draft_len), p.position = data<int32_t>(position),
    p.seed = data<int64_t>(seed);
    if (uniforms) p.uniforms = data<double>(*uniforms), p.uniforms_row = uniforms->stride(0);
    p.sampling = {data<float>(temperature), data_or_null<int32_t>(top_k),
                  data_or_null<float>(top_p)};
    p.tokens = data<int32_t>(tokens), p.lse = data<float>(lse);
    p.workspace = data_or_null<double>(workspace);
    p.batch = int(tokens.size(0)), p.drafts = int(tokens.size(1)), p.valid = int(num_valid_vocab),
    p.mask_token = int(mask_token);
    p.threads = int(torch::stable::get_num_threads()), p.greedy = greedy;
    BLOCKDRAFT_LAUNCH(logits, sample_drafts, p);
  });
}

void register_sample_drafts(torch::stable::detail::StableLibrary& library) {
  library.impl("sample_drafts_cpp", TORCH_BOX(&sample_drafts_torch));
}

}  // namespace blockdraft
