// CPU launcher of cca_qkv: each thread takes the next item that is left.
#include <vector>

#include "base/parallel.h"
#include "ops/cca_qkv/body.h"
#include "tile/cpu/gemm.h"

namespace blockdraft {

template <class T, class C>
void launch(const CcaParams<T, C>& p, const Parallel& parallel) {
  using Gemm = cpu::Gemm<T>;
  using Memory = CcaMemory<typename Gemm::Staged>;
  constexpr int kColumns = Gemm::kGroupColumns;
  const int64_t bytes =
      kColumns * Memory::of_row(p.head_dim, p.taps1, true) + Memory::shared(p.head_dim, p.taps0);
  schedule(p, kColumns, [&]<CcaStep kStep>(int64_t groups) {
    const int64_t channels = int64_t(p.query_heads + p.kv_heads) * p.head_dim;
    parallel.each(groups, p.total_rows * channels * p.head_dim * p.taps1, [&](int64_t id) {
      [[maybe_unused]] const cpu::SubnormalsOf<C> kept{};
      thread_local Gemm gemm;
      thread_local std::vector<char> memory;
      memory.resize(bytes);
      cca_qkv(gemm, p, id, kColumns,
              Memory(memory.data(), kColumns, p.head_dim, p.taps0, p.taps1, true));
    });
  });
}

#define BLOCKDRAFT_INSTANTIATE(T)                                     \
  template void launch(const CcaParams<T>&, const Parallel&);         \
  template void launch(const CcaParams<T, e4m3fn>&, const Parallel&); \
  template void launch(const CcaParams<T, e4m3fnuz>&, const Parallel&);
BLOCKDRAFT_INSTANTIATE(float)
BLOCKDRAFT_INSTANTIATE(bf16)
BLOCKDRAFT_INSTANTIATE(fp16)
#undef BLOCKDRAFT_INSTANTIATE

}  // namespace blockdraft
