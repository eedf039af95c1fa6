// Arguments of accept_drafts' kernels, in the order of blockdraft.ops.accept_drafts.Args.
#pragma once

#include "base/device.h"
#include "ops/accept_drafts/rules.h"
#include "ops/sampling/draw.h"

namespace blockdraft {

template <class T>
struct AcceptParams {
  PenaltiesParams penalties;            // first: see tile/scan.h's reload
  View<const T, 2> target_logits;       // [batch][drafts + 1][vocab]
  View<const int32_t, 1> draft_tokens;  // [batch][drafts]
  View<const T, 2> draft_logits;        // [batch][drafts][vocab], or none
  View<const double, 2> draft_lse;      // [batch][drafts][4], or none
  const int32_t* draft_len;
  View<const int32_t, 1> branch;  // [batch][proposals]
  int mask_rows;
  const int64_t* seed;
  const int32_t* position;
  View<const double, 1> uniforms;  // [batch][drafts + 1], or none
  SamplingParams target_sampling, drafter_sampling;
  View<const uint32_t, 2> allowed;        // [batch][drafts + 1][words], or none
  View<const uint32_t, 2> draft_allowed;  // [batch][drafts][words], or none
  const float* mix;                       // or null
  bool dirac;                             // q has all mass on the draft
  int rule;
  int num_valid_vocab, vocab_block, mask_token;
  const int32_t* remaining;  // or null
  int32_t *accepted, *next_token, *proposal, *shift, *next_draft_len, *status;
  View<float, 1> target_logprob;  // [batch][drafts + 1], or none
  View<int32_t, 2> top_tokens;    // [batch][drafts + 1][top], or none
  View<float, 2> top_logprobs;
  View<double, 2> workspace;  // [batch][2 * drafts + 1][doubles of a row], on a GPU

  int batch, drafts, proposals, top;

  BLOCKDRAFT_POINTERS(target_logits, draft_tokens, draft_logits, draft_lse, draft_len, branch, seed,
                      position, uniforms, target_sampling, drafter_sampling, penalties, allowed,
                      draft_allowed, mix, remaining, accepted, next_token, proposal, shift,
                      next_draft_len, status, target_logprob, top_tokens, top_logprobs, workspace)

  Vocabulary vocabulary() const { return {num_valid_vocab, mask_token, vocab_block}; }
};

template <class T>
void launch(const AcceptParams<T>&, const Parallel&);
template <class T>
void launch(const AcceptParams<T>&, Stream);

}  // namespace blockdraft
