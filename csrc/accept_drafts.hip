// GPU launcher of accept_drafts: a wave measures a block of the vocabulary, a workgroup concludes
// on a row or a request.
#include "hip_launch.h"

#pragma clang force_cuda_host_device begin
#pragma clang attribute push(__attribute__((always_inline)), apply_to = function)
#include "accept_drafts.h"
#include "tile/cdna_scan.h"
#pragma clang attribute pop
#pragma clang force_cuda_host_device end

namespace blockdraft {

constexpr int kCrewThreads = 512;

// Items are request-major; a request has `rows` x `blocks` of them.
template <class T, int kStep, int kThreads>
BLOCKDRAFT_KERNEL(kThreads, 1)
accept_drafts_kernel(AcceptParams<T> p, int rows, int blocks, int vocabulary_blocks) {
  p.each_pointer([](auto*& pointer) { pointer = cdna::global(pointer); });
  const int item = __builtin_amdgcn_workgroup_id_x(), request = item / (rows * blocks),
            row = item / blocks % rows;
  double* memory = p.workspace + request * AcceptMemory<T>::doubles(p.drafts, vocabulary_blocks);
  const auto split = AcceptMemory<T>::at(memory, p.drafts, vocabulary_blocks);
  cdna::Crew<kThreads> crew(split.sums);
  Acceptance<cdna::Crew<kThreads>, T>(crew, p, request, split)
      .template step<kStep>(row, item % blocks);
}

#define BLOCKDRAFT_STEP(T, step, threads) \
  template BLOCKDRAFT_KERNEL(threads, 1)  \
  accept_drafts_kernel<T, step, threads>(AcceptParams<T>, int, int, int);
#define BLOCKDRAFT_INSTANTIATE(T)                                           \
  BLOCKDRAFT_STEP(T, 0, cdna::kWave)                                        \
  BLOCKDRAFT_STEP(T, 1, kCrewThreads) BLOCKDRAFT_STEP(T, 2, cdna::kWave)    \
      BLOCKDRAFT_STEP(T, 3, cdna::kWave) BLOCKDRAFT_STEP(T, 4, cdna::kWave) \
          BLOCKDRAFT_STEP(T, 5, kCrewThreads) BLOCKDRAFT_STEP(T, 6, kCrewThreads)
BLOCKDRAFT_INSTANTIATE(float)
BLOCKDRAFT_INSTANTIATE(bf16)
BLOCKDRAFT_INSTANTIATE(fp16)
#undef BLOCKDRAFT_INSTANTIATE
#undef BLOCKDRAFT_STEP

}  // namespace blockdraft

#ifdef BLOCKDRAFT_HIP_RUNTIME
namespace blockdraft {

template <class T>
void accept_drafts_hip(const AcceptParams<T>& p, void* stream) {
  const int blocks = Vocabulary(p.valid, p.mask_token).blocks, rows = 2 * p.drafts + 1;
  const auto run = [&](auto* kernel, int threads, int rows, int blocks_of_row) {
    launch(kernel, int64_t(p.batch) * rows * blocks_of_row, threads, stream, p, rows, blocks_of_row,
           blocks);
  };
  run(accept_drafts_kernel<T, 0, cdna::kWave>, cdna::kWave, rows, blocks);
  run(accept_drafts_kernel<T, 1, kCrewThreads>, kCrewThreads, rows, 1);
  if (p.mode == kBlock && p.drafts > 1)
    run(accept_drafts_kernel<T, 2, cdna::kWave>, cdna::kWave, p.drafts, blocks);
  run(accept_drafts_kernel<T, 3, cdna::kWave>, cdna::kWave, 1, 1);
  run(accept_drafts_kernel<T, 4, cdna::kWave>, cdna::kWave, 1, blocks);
  run(accept_drafts_kernel<T, 5, kCrewThreads>, kCrewThreads, 1, 1);
  if (p.logprob) run(accept_drafts_kernel<T, 6, kCrewThreads>, kCrewThreads, p.drafts + 1, 1);
}

template void accept_drafts_hip(const AcceptParams<float>&, void*);
template void accept_drafts_hip(const AcceptParams<bf16>&, void*);
template void accept_drafts_hip(const AcceptParams<fp16>&, void*);

}  // namespace blockdraft
#endif
