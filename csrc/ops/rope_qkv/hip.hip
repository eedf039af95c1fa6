// GPU launcher of rope_qkv for gfx942 and gfx950. A workgroup has as many heads of a row as give
// each thread eight channels, so that one request's rows are on many compute units.
#include "tile/cdna/launch.h"

#pragma clang force_cuda_host_device begin
#include "ops/rope_qkv/body.h"
#include "tile/cdna/group.h"
#pragma clang force_cuda_host_device end

namespace blockdraft {

constexpr int kRopeThreads = 256;

template <class T, RopeStep kStep, class C>
BLOCKDRAFT_KERNEL(kRopeThreads, 8)
rope_qkv_kernel(RopeParams<T, C> p) {
  cdna::use_global_pointers(p);
  cdna::Group<kRopeThreads> group;
  rope_qkv(group, p, cdna::group_index(), rope_heads(p, kRopeThreads));
}

#define BLOCKDRAFT_INSTANTIATE(T, C)          \
  template BLOCKDRAFT_KERNEL(kRopeThreads, 8) \
  rope_qkv_kernel<T, RopeStep::kRotate, C>(RopeParams<T, C>);
BLOCKDRAFT_INSTANTIATE(float, float)
BLOCKDRAFT_INSTANTIATE(bf16, bf16)
BLOCKDRAFT_INSTANTIATE(fp16, fp16)
// Each device has its own fp8; a launch of the other's finds no kernel.
#ifndef __gfx942__
BLOCKDRAFT_INSTANTIATE(bf16, e4m3fn)
#endif
#ifndef __gfx950__
BLOCKDRAFT_INSTANTIATE(bf16, e4m3fnuz)
#endif
#undef BLOCKDRAFT_INSTANTIATE

}  // namespace blockdraft

#ifdef BLOCKDRAFT_HIP_RUNTIME
#pragma clang force_cuda_host_device begin  // as params.h declares it
namespace blockdraft {

template <class T, class C>
void launch(const RopeParams<T, C>& p, Stream stream) {
  if constexpr (Format<C>::kScaled && !std::is_same_v<T, bf16>)
    throw std::invalid_argument("rope_qkv: q is bf16 beside a cache of fp8 on a GPU");
  else
    schedule(p, rope_heads(p, kRopeThreads), [&]<RopeStep kStep>(int64_t groups) {
      start(rope_qkv_kernel<T, kStep, C>, groups, kRopeThreads, stream, p);
    });
}

#define BLOCKDRAFT_INSTANTIATE(T)                             \
  template void launch(const RopeParams<T>&, Stream);         \
  template void launch(const RopeParams<T, e4m3fn>&, Stream); \
  template void launch(const RopeParams<T, e4m3fnuz>&, Stream);
BLOCKDRAFT_INSTANTIATE(float)
BLOCKDRAFT_INSTANTIATE(bf16)
BLOCKDRAFT_INSTANTIATE(fp16)
#undef BLOCKDRAFT_INSTANTIATE

}  // namespace blockdraft
#pragma clang force_cuda_host_device end
#endif
