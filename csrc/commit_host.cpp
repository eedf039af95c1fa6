// CPU launcher of commit: a request is an item.
#include "commit.h"
#include "parallel.h"
#include "tile/host.h"

namespace blockdraft {

template <class U>
void commit_host(const CommitParams<U>& p, const Parallel& parallel) {
  parallel(p.batch, 1, [&](int64_t begin, int64_t end) {
    host::Group group;
    for (int64_t request = begin; request < end; ++request) commit(group, p, int(request));
  });
}

template void commit_host(const CommitParams<uint16_t>&, const Parallel&);
template void commit_host(const CommitParams<uint32_t>&, const Parallel&);
template void commit_host(const CommitParams<Bits128>&, const Parallel&);

}  // namespace blockdraft
