// GPU launcher of sample_drafts: a wave measures a block of the vocabulary, a workgroup finishes a
// row.
#include "hip_launch.h"

#pragma clang force_cuda_host_device begin
#pragma clang attribute push(__attribute__((always_inline)), apply_to = function)
#include "sample_drafts.h"
#include "tile/cdna_scan.h"
#pragma clang attribute pop
#pragma clang force_cuda_host_device end

namespace blockdraft {

constexpr int kSampleThreads = 512;

template <class T>
BLOCKDRAFT_KERNEL(cdna::kWave, 1)
sample_measure_kernel(SampleParams<T> p, int blocks) {
  p.each_pointer([](auto*& pointer) { pointer = cdna::global(pointer); });
  const int row = __builtin_amdgcn_workgroup_id_x() / blocks;
  double* memory = p.workspace + row * sample_doubles(blocks);
  cdna::Crew<cdna::kWave> crew(memory + 2 * blocks);
  DraftRow<cdna::Crew<cdna::kWave>, T>(crew, p, row, reinterpret_cast<Partial*>(memory))
      .measure(__builtin_amdgcn_workgroup_id_x() % blocks);
}

template <class T>
BLOCKDRAFT_KERNEL(kSampleThreads, 1)
sample_finish_kernel(SampleParams<T> p, int blocks) {
  p.each_pointer([](auto*& pointer) { pointer = cdna::global(pointer); });
  const int row = __builtin_amdgcn_workgroup_id_x();
  double* memory = p.workspace + row * sample_doubles(blocks);
  cdna::Crew<kSampleThreads> crew(memory + 2 * blocks);
  DraftRow<cdna::Crew<kSampleThreads>, T>(crew, p, row, reinterpret_cast<Partial*>(memory))
      .finish();
}

#define BLOCKDRAFT_INSTANTIATE(T)                 \
  template BLOCKDRAFT_KERNEL(cdna::kWave, 1)      \
  sample_measure_kernel<T>(SampleParams<T>, int); \
  template BLOCKDRAFT_KERNEL(kSampleThreads, 1)   \
  sample_finish_kernel<T>(SampleParams<T>, int);
BLOCKDRAFT_INSTANTIATE(float)
BLOCKDRAFT_INSTANTIATE(bf16)
BLOCKDRAFT_INSTANTIATE(fp16)
#undef BLOCKDRAFT_INSTANTIATE

}  // namespace blockdraft

#ifdef BLOCKDRAFT_HIP_RUNTIME
namespace blockdraft {

template <class T>
void sample_drafts_hip(const SampleParams<T>& p, void* stream) {
  const int blocks = Vocabulary(p.valid, p.mask_token).blocks, rows = p.batch * p.drafts;
  launch(sample_measure_kernel<T>, int64_t(rows) * blocks, cdna::kWave, stream, p, blocks);
  launch(sample_finish_kernel<T>, rows, kSampleThreads, stream, p, blocks);
}

template void sample_drafts_hip(const SampleParams<float>&, void*);
template void sample_drafts_hip(const SampleParams<bf16>&, void*);
template void sample_drafts_hip(const SampleParams<fp16>&, void*);

}  // namespace blockdraft
#endif
