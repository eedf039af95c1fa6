// CPU launcher of block_attention: each thread takes the next item that is left; then the splits
// are merged.
#include <atomic>
#include <vector>

#include "block_attention.h"
#include "parallel.h"
#include "tile/host.h"

namespace blockdraft {
namespace {

float* aligned_memory(int64_t floats) {
  thread_local std::vector<float>
      memory;  // kept between calls: an allocation of this size is a system call
  if (int64_t(memory.size()) < floats + 16) memory.resize(floats + 16);
  return memory.data() +
         (-(reinterpret_cast<uintptr_t>(memory.data()) / sizeof(float)) & 15);  // to a cache line
}

}  // namespace

template <class T>
void block_attention_host(const AttentionParams<T>& p, const Parallel& parallel) {
  host::with_tile_type<T, AttentionColumn>([&](auto type) {
    using Tile = typename decltype(type)::type;
    const AttentionGrid<T> grid(p, Tile::kGroupColumns);
    std::atomic<int64_t> taken{0};
    parallel(grid.items, 1, [&](int64_t, int64_t) {
      for (int64_t id; (id = taken.fetch_add(1, std::memory_order_relaxed)) < grid.items;) {
        AttentionItem item;
        if (!grid.item(p, id, item)) continue;
        Tile tile(
            aligned_memory(Tile::floats(item.rows * (p.query_heads / p.kv_heads), p.head_dim)),
            p.head_dim);
        Attention<Tile, T>(tile, p, item).run();
      }
    });
  });
  if (AttentionSplits(p.max_prefix, p.split).count == 1) return;
  parallel(int64_t(p.batch) * p.max_rows, 8, [&](int64_t begin, int64_t end) {
    host::Group group;
    for (int64_t i = begin; i < end; ++i)
      for (int head = 0; head < p.query_heads; ++head)
        merge_attention(group, p, int(i / p.max_rows), int(i % p.max_rows), head);
  });
}

template void block_attention_host(const AttentionParams<float>&, const Parallel&);
template void block_attention_host(const AttentionParams<bf16>&, const Parallel&);
template void block_attention_host(const AttentionParams<fp16>&, const Parallel&);

}  // namespace blockdraft
