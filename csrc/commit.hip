// GPU launcher of commit: a workgroup is a request.
#include <stdint.h>

#pragma clang force_cuda_host_device begin
#include "commit.h"
#include "tile/cdna.h"
#pragma clang force_cuda_host_device end

namespace blockdraft {

constexpr int kCommitThreads = 1024;

template <class U>
BLOCKDRAFT_KERNEL(kCommitThreads, 4) commit_kernel(CommitParams<U> p) {
  p.each_pointer([](auto*& pointer) { pointer = cdna::global(pointer); });
  cdna::Group<kCommitThreads> group;
  commit(group, p, __builtin_amdgcn_workgroup_id_x());
}

template BLOCKDRAFT_KERNEL(kCommitThreads, 4) commit_kernel<uint16_t>(CommitParams<uint16_t>);
template BLOCKDRAFT_KERNEL(kCommitThreads, 4) commit_kernel<uint32_t>(CommitParams<uint32_t>);
template BLOCKDRAFT_KERNEL(kCommitThreads, 4) commit_kernel<Bits128>(CommitParams<Bits128>);

}  // namespace blockdraft

#if __has_include(<hip/hip_runtime.h>)
#include <hip/hip_runtime.h>

namespace blockdraft {

template <class U>
void commit_hip(const CommitParams<U>& p, void* stream) {
  if (p.batch > 0) commit_kernel<U><<<p.batch, kCommitThreads, 0, static_cast<hipStream_t>(stream)>>>(p);
}

template void commit_hip(const CommitParams<uint16_t>&, void*);
template void commit_hip(const CommitParams<uint32_t>&, void*);
template void commit_hip(const CommitParams<Bits128>&, void*);

}  // namespace blockdraft
#endif
