// GPU launcher of commit: a workgroup is a request.
#include "hip_launch.h"

#pragma clang force_cuda_host_device begin
#include "commit.h"
#include "tile/cdna.h"
#pragma clang force_cuda_host_device end

namespace blockdraft {

constexpr int kCommitThreads = 1024;

template <class U>
BLOCKDRAFT_KERNEL(kCommitThreads, 4)
commit_kernel(CommitParams<U> p) {
  p.each_pointer([](auto*& pointer) { pointer = cdna::global(pointer); });
  cdna::Group<kCommitThreads> group;
  commit(group, p, __builtin_amdgcn_workgroup_id_x());
}

template BLOCKDRAFT_KERNEL(kCommitThreads, 4)
commit_kernel<uint16_t>(CommitParams<uint16_t>);
template BLOCKDRAFT_KERNEL(kCommitThreads, 4)
commit_kernel<uint32_t>(CommitParams<uint32_t>);
template BLOCKDRAFT_KERNEL(kCommitThreads, 4)
commit_kernel<Bits128>(CommitParams<Bits128>);

}  // namespace blockdraft

#ifdef BLOCKDRAFT_HIP_RUNTIME
namespace blockdraft {

template <class U>
void commit_hip(const CommitParams<U>& p, void* stream) {
  launch(commit_kernel<U>, p.batch, kCommitThreads, stream, p);
}

template void commit_hip(const CommitParams<uint16_t>&, void*);
template void commit_hip(const CommitParams<uint32_t>&, void*);
template void commit_hip(const CommitParams<Bits128>&, void*);

}  // namespace blockdraft
#endif
