// GPU launcher of accept_drafts: one wave measures a vocab_block; a workgroup does the rest.
#include "tile/cdna/launch.h"

#pragma clang force_cuda_host_device begin
#pragma clang attribute push(__attribute__((always_inline)), apply_to = function)
#include "ops/accept_drafts/body.h"
#include "tile/cdna/scan.h"
#pragma clang attribute pop
#pragma clang force_cuda_host_device end

namespace blockdraft {

constexpr int threads_of(AcceptStep step) {
  return step == AcceptStep::kMeasure ? cdna::kWave : step == AcceptStep::kDrawAlone ? 256 : 512;
}
constexpr bool cuts(AcceptStep step) {
  return step == AcceptStep::kNormalise || step == AcceptStep::kLogprob;
}

// That registers are left for. A cut needs many.
constexpr int waves_of_simd(AcceptStep step) { return cuts(step) ? 2 : 4; }

template <class T, AcceptStep kStep>
BLOCKDRAFT_KERNEL(threads_of(kStep), waves_of_simd(kStep))
accept_drafts_kernel(AcceptParams<T> p) {
  using Crew = cdna::Crew<threads_of(kStep), cuts(kStep)>;
  __attribute__((shared)) static typename Crew::Memory shared;
  __attribute__((shared)) alignas(16) static char own[own_bytes<T>(kStep)];
  Crew crew(shared);
  cdna::use_global_pointers(p);
  accept_step<kStep>(crew, p, cdna::group_index(), own);
}

#define BLOCKDRAFT_STEP(T, step)                                                            \
  template BLOCKDRAFT_KERNEL(threads_of(AcceptStep::step), waves_of_simd(AcceptStep::step)) \
  accept_drafts_kernel<T, AcceptStep::step>(AcceptParams<T>);
#define BLOCKDRAFT_INSTANTIATE(T) \
  BLOCKDRAFT_STEP(T, kMeasure)    \
  BLOCKDRAFT_STEP(T, kNormalise)  \
  BLOCKDRAFT_STEP(T, kDraw)       \
  BLOCKDRAFT_STEP(T, kLogprob)    \
  BLOCKDRAFT_STEP(T, kDrawAlone)
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
