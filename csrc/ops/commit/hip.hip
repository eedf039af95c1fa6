// GPU launcher of commit: a workgroup for each request.
#include "tile/cdna/launch.h"

#pragma clang force_cuda_host_device begin
#include "ops/commit/body.h"
#include "tile/cdna/group.h"
#pragma clang force_cuda_host_device end

namespace blockdraft {

constexpr int kCommitThreads = 1024;

template <class U, CommitStep kStep>
BLOCKDRAFT_KERNEL(kCommitThreads, 4)
commit_kernel(CommitParams<U> p) {
  cdna::use_global_pointers(p);
  cdna::Group<kCommitThreads> group;
  commit(group, p, cdna::group_index());
}

#define BLOCKDRAFT_INSTANTIATE(U)               \
  template BLOCKDRAFT_KERNEL(kCommitThreads, 4) \
  commit_kernel<U, CommitStep::kCommit>(CommitParams<U>);
BLOCKDRAFT_INSTANTIATE(uint16_t)
BLOCKDRAFT_INSTANTIATE(uint32_t)
BLOCKDRAFT_INSTANTIATE(Bits128)
#undef BLOCKDRAFT_INSTANTIATE

}  // namespace blockdraft

#ifdef BLOCKDRAFT_HIP_RUNTIME
#pragma clang force_cuda_host_device begin  // as params.h declares it
namespace blockdraft {

template <class U>
void launch(const CommitParams<U>& p, Stream stream) {
  schedule(p, [&]<CommitStep kStep>(int64_t groups) {
    start(commit_kernel<U, kStep>, groups, kCommitThreads, stream, p);
  });
}

template void launch(const CommitParams<uint16_t>&, Stream);
template void launch(const CommitParams<uint32_t>&, Stream);
template void launch(const CommitParams<Bits128>&, Stream);

}  // namespace blockdraft
#pragma clang force_cuda_host_device end
#endif
