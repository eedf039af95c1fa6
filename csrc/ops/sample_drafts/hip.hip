// GPU launcher of sample_drafts: a wave measures a vocab_block, a workgroup cuts or finishes a row.
#include "tile/cdna/launch.h"

#pragma clang force_cuda_host_device begin
#pragma clang attribute push(__attribute__((always_inline)), apply_to = function)
#include "ops/sample_drafts/body.h"
#include "tile/cdna/scan.h"
#pragma clang attribute pop
#pragma clang force_cuda_host_device end

namespace blockdraft {

constexpr bool cuts(SampleStep step) { return step == SampleStep::kCut; }
constexpr int threads_of(SampleStep step) {
  return step == SampleStep::kMeasure ? cdna::kWave : 512;
}

// That registers are left for. A cut needs many.
constexpr int waves_of_simd(SampleStep step) { return cuts(step) ? 2 : 4; }

template <class T, SampleStep kStep>
BLOCKDRAFT_KERNEL(threads_of(kStep), waves_of_simd(kStep))
sample_drafts_kernel(SampleParams<T> p) {
  using Crew = cdna::Crew<threads_of(kStep), cuts(kStep)>;
  cdna::use_global_pointers(p);
  const int blocks = p.vocabulary().blocks;
  const int blocks_of_row = kStep == SampleStep::kMeasure ? blocks : 1;
  const int row = cdna::group_index() / blocks_of_row;
  double* const own = p.workspace.at(row / p.drafts, row % p.drafts);
  const auto memory = RowsMemory<T>::staged(own, p.workspace.stride[1], blocks);
  __attribute__((shared)) static typename Crew::Memory shared;
  Crew crew(shared);
  DraftRow<Crew, T>(crew, p, row, memory).template step<kStep>(cdna::group_index() % blocks_of_row);
}

#define BLOCKDRAFT_STEP(T, step)                                                            \
  template BLOCKDRAFT_KERNEL(threads_of(SampleStep::step), waves_of_simd(SampleStep::step)) \
  sample_drafts_kernel<T, SampleStep::step>(SampleParams<T>);
#define BLOCKDRAFT_INSTANTIATE(T) \
  BLOCKDRAFT_STEP(T, kMeasure) BLOCKDRAFT_STEP(T, kCut) BLOCKDRAFT_STEP(T, kFinish)
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
void launch(const SampleParams<T>& p, Stream stream) {
  schedule(p, [&]<SampleStep kStep>(int64_t groups) {
    start(sample_drafts_kernel<T, kStep>, groups, threads_of(kStep), stream, p);
  });
}

template void launch(const SampleParams<float>&, Stream);
template void launch(const SampleParams<bf16>&, Stream);
template void launch(const SampleParams<fp16>&, Stream);

}  // namespace blockdraft
#pragma clang force_cuda_host_device end
#endif
