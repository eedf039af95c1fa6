// GPU launcher of accept_drafts: one wave scans a vocab_block or decides on a request; a workgroup
// normalises a row or finishes a request.
#include "tile/cdna/launch.h"

#pragma clang force_cuda_host_device begin
#pragma clang attribute push(__attribute__((always_inline)), apply_to = function)
#include "ops/accept_drafts/body.h"
#include "tile/cdna/scan.h"
#pragma clang attribute pop
#pragma clang force_cuda_host_device end

namespace blockdraft {

constexpr int kCrewThreads = 512;
constexpr int threads_of(AcceptStep step) { return by_scans(step) ? cdna::kWave : kCrewThreads; }

template <class T, AcceptStep kStep>
BLOCKDRAFT_KERNEL(threads_of(kStep), 1)
accept_drafts_kernel(AcceptParams<T> p) {
  using Crew = cdna::Crew<threads_of(kStep)>;
  cdna::use_global_pointers(p);
  const AcceptGrid grid = accept_grid(p, kStep);
  const int group = cdna::group_index();
  const int request = grid.request(group);
  const int row = grid.row(group);
  const auto memory =
      RowsMemory<T>::staged(p.workspace.at(request), p.workspace.stride[1], p.vocabulary().blocks);
  Crew crew;
  Acceptance<Crew, T>(crew, p, request, memory, row).template step<kStep>(row, grid.block(group));
}

#define BLOCKDRAFT_STEP(T, step)                              \
  template BLOCKDRAFT_KERNEL(threads_of(AcceptStep::step), 1) \
  accept_drafts_kernel<T, AcceptStep::step>(AcceptParams<T>);
#define BLOCKDRAFT_INSTANTIATE(T) \
  BLOCKDRAFT_STEP(T, kMeasure)    \
  BLOCKDRAFT_STEP(T, kNormalise)  \
  BLOCKDRAFT_STEP(T, kSurplus)    \
  BLOCKDRAFT_STEP(T, kDecide)     \
  BLOCKDRAFT_STEP(T, kWeigh)      \
  BLOCKDRAFT_STEP(T, kFinish)     \
  BLOCKDRAFT_STEP(T, kLogprob)
BLOCKDRAFT_INSTANTIATE(float)
BLOCKDRAFT_INSTANTIATE(bf16)
BLOCKDRAFT_INSTANTIATE(fp16)
#undef BLOCKDRAFT_INSTANTIATE
#undef BLOCKDRAFT_STEP

}  // namespace blockdraft

#ifdef BLOCKDRAFT_HIP_RUNTIME
#pragma clang force_cuda_host_device begin  // as params.h declares it
namespace blockdraft {

template <class T>
void launch(const AcceptParams<T>& p, Stream stream) {
  schedule(p, [&]<AcceptStep kStep>(int64_t groups) {
    start(accept_drafts_kernel<T, kStep>, groups, threads_of(kStep), stream, p);
  });
}

template void launch(const AcceptParams<float>&, Stream);
template void launch(const AcceptParams<bf16>&, Stream);
template void launch(const AcceptParams<fp16>&, Stream);

}  // namespace blockdraft
#pragma clang force_cuda_host_device end
#endif
