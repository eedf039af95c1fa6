// CPU launcher of commit: a request is an item.
#include "base/parallel.h"
#include "ops/commit/body.h"
#include "tile/cpu/group.h"

namespace blockdraft {

template <class U>
void launch(const CommitParams<U>& p, const Parallel& parallel) {
  schedule(p, [&]<CommitStep>(int64_t requests) {
    parallel(requests, 1, [&](int64_t begin, int64_t end) {
      cpu::Group group;
      for (int64_t request = begin; request < end; ++request) commit(group, p, int(request));
    });
  });
}

template void launch(const CommitParams<uint16_t>&, const Parallel&);
template void launch(const CommitParams<uint32_t>&, const Parallel&);
template void launch(const CommitParams<Bits128>&, const Parallel&);

}  // namespace blockdraft
