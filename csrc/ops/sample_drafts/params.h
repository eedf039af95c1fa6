// Arguments of sample_drafts' kernels, in the order of blockdraft.ops.sample_drafts.Args.
#pragma once

#include "base/device.h"
#include "ops/sampling/draw.h"

namespace blockdraft {

template <class T>
struct SampleParams {
  PenaltiesParams penalties;  // first: see tile/scan.h's reload
  View<const T, 2> logits;    // [batch][drafts][vocab]
  const int32_t* draft_len;
  const int64_t* seed;
  const int32_t* position;
  View<const double, 1> uniforms;  // [batch][drafts], or none
  SamplingParams drafter_sampling;
  View<const uint32_t, 2> allowed;  // [batch][drafts][words], or none
  bool greedy;
  int num_valid_vocab, vocab_block, mask_token;
  View<int32_t, 1> draft_tokens;  // [batch][drafts]
  View<double, 2> draft_lse;      // [batch][drafts][4]
  View<double, 2> workspace;      // [batch][drafts][doubles of a row], on a GPU

  int batch, drafts;

  BLOCKDRAFT_POINTERS(logits, draft_len, seed, position, uniforms, drafter_sampling, penalties,
                      allowed, draft_tokens, draft_lse, workspace)

  Vocabulary vocabulary() const { return {num_valid_vocab, mask_token, vocab_block}; }
};

template <class T>
void launch(const SampleParams<T>&, const Parallel&);
template <class T>
void launch(const SampleParams<T>&, Stream);

}  // namespace blockdraft
