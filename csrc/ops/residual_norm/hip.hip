// GPU launcher of residual_norm for gfx942 and gfx950: a workgroup of one wave for each row, so
// that a few hundred rows are on as many compute units.
#include "tile/cdna/launch.h"

#pragma clang force_cuda_host_device begin
#include "ops/residual_norm/body.h"
#include "tile/cdna/group.h"
#pragma clang force_cuda_host_device end

namespace blockdraft {

template <class T, ResidualNormStep kStep>
BLOCKDRAFT_KERNEL(cdna::kWave, 4)
residual_norm_kernel(ResidualNormParams<T> p) {
  cdna::use_global_pointers(p);
  cdna::Group<cdna::kWave> group;
  residual_norm(group, p, cdna::group_index(), 1);
}

#define BLOCKDRAFT_INSTANTIATE(T)            \
  template BLOCKDRAFT_KERNEL(cdna::kWave, 4) \
  residual_norm_kernel<T, ResidualNormStep::kNorm>(ResidualNormParams<T>);
BLOCKDRAFT_INSTANTIATE(float)
BLOCKDRAFT_INSTANTIATE(bf16)
BLOCKDRAFT_INSTANTIATE(fp16)
#undef BLOCKDRAFT_INSTANTIATE

}  // namespace blockdraft

#ifdef BLOCKDRAFT_HIP_RUNTIME
#pragma clang force_cuda_host_device begin  // as params.h declares it
namespace blockdraft {

template <class T>
void launch(const ResidualNormParams<T>& p, Stream stream) {
  schedule(p, 1, [&]<ResidualNormStep kStep>(int64_t groups) {
    start(residual_norm_kernel<T, kStep>, groups, cdna::kWave, stream, p);
  });
}

template void launch(const ResidualNormParams<float>&, Stream);
template void launch(const ResidualNormParams<bf16>&, Stream);
template void launch(const ResidualNormParams<fp16>&, Stream);

}  // namespace blockdraft
#pragma clang force_cuda_host_device end
#endif
