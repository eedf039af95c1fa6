// CPU launcher of rope_qkv: the queries, the keys or the values of a row are an item.
#include "base/parallel.h"
#include "ops/rope_qkv/body.h"
#include "tile/cpu/group.h"

namespace blockdraft {

constexpr int kRopeGrain = 1 << 16;  // elements that are worth another thread

template <class T, class C>
void launch(const RopeParams<T, C>& p, const Parallel& parallel) {
  schedule(p, p.query_heads, [&]<RopeStep>(int64_t items) {
    const int64_t grain = ceil_div(kRopeGrain, p.query_heads * p.head_dim);
    parallel(items, grain, [&](int64_t begin, int64_t end) {
      [[maybe_unused]] const cpu::SubnormalsOf<C> kept{};
      cpu::Group group;
      for (int64_t id = begin; id < end; ++id) rope_qkv(group, p, id, p.query_heads);
    });
  });
}

#define BLOCKDRAFT_INSTANTIATE(T)                                      \
  template void launch(const RopeParams<T>&, const Parallel&);         \
  template void launch(const RopeParams<T, e4m3fn>&, const Parallel&); \
  template void launch(const RopeParams<T, e4m3fnuz>&, const Parallel&);
BLOCKDRAFT_INSTANTIATE(float)
BLOCKDRAFT_INSTANTIATE(bf16)
BLOCKDRAFT_INSTANTIATE(fp16)
#undef BLOCKDRAFT_INSTANTIATE

}  // namespace blockdraft
