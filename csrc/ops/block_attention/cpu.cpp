// CPU launcher of block_attention: each thread repeatedly takes the next item; then the splits are
// merged.
#include <optional>
#include <vector>

#include "base/parallel.h"

#include "ops/block_attention/body.h"
#include "tile/cpu/narrow.h"

namespace blockdraft {
namespace {

float* aligned_memory(int64_t floats) {
  thread_local std::vector<float> memory;  // kept between calls, since allocation is a system call
  return cpu::aligned(memory, floats);
}

template <class Tile, class T, class... Heads>
void attend_item(const AttentionParams<T>& p, const AttentionItem& item, int columns,
                 Heads... heads) {
  Tile tile(aligned_memory(Tile::floats(columns, p.head_dim)), p.head_dim, heads...);
  Attention<Tile, T>(tile, p, item).run();
}

// Whether the items of all KV heads are one, which has the same bits.
template <class Narrow, class T>
bool joins_heads(const AttentionParams<T>& p, int64_t items, int threads) {
  const bool fits = p.rows.max_rows * p.group() <= Narrow::kHeadColumns &&
                    p.rows.max_rows * p.query_heads <= Narrow::kGroupColumns;
  const bool whole = p.group() % 4 == 0;  // panels
  const bool alike =
      !p.k_cache || (p.k_cache.stride[2] == p.k.stride[1] && p.v_cache.stride[2] == p.v.stride[1]);
  const int64_t joined = items / p.kv_heads;
  const bool busy = joined >= 2 * threads || (joined && joined % threads == 0);  // all threads
  return fits && whole && alike && busy;
}

template <class Tile, class T>
void attend(const AttentionParams<T>& p, const AttentionGrid& grid, const Parallel& parallel) {
  int64_t scores = 0;
  for (int r = 0; r < p.rows.batch; ++r) {
    const int64_t rows = p.rows.count(r);
    scores += rows * (p.rows.prefix(r) + rows);
  }
  using Narrow = cpu::NarrowTile<T, AttentionColumn>;
  const bool coded = p.cache_format != CacheFormat::kPlain;
  // Codes are decoded for a matrix unit without operands that are subnormal, which Intel's CPUs
  // multiply slowly.
  const bool narrow = !(coded && Tile::kMatrix);
  const int joined =
      narrow && joins_heads<Narrow>(p, grid.items, parallel.threads) ? p.kv_heads : 1;
  const typename Narrow::Apart apart = {p.k.stride[1], p.v.stride[1], p.k_scale.stride[1],
                                        p.v_scale.stride[1]};
  const int64_t of_head = int64_t(grid.splits) * grid.tiles;
  parallel.each(grid.items / joined, 2 * scores * p.query_heads * p.head_dim, [&](int64_t i) {
    const int64_t id = i / of_head * joined * of_head + i % of_head;
    AttentionItem item;
    if (!grid.item(p, id, item)) return;
    std::optional<cpu::Subnormals> kept;
    if (coded) kept.emplace();
    const int columns = item.rows * p.group();
    if (narrow && columns <= Narrow::kHeadColumns)
      attend_item<Narrow>(p, item, columns * joined, joined, apart, coded);
    else
      attend_item<Tile>(p, item, columns);
  });
}

template <class T>
void merge(const AttentionParams<T>& p, const AttentionGrid& grid, int64_t items,
           const Parallel& parallel) {
  parallel(items, 8 * p.query_heads * AttentionMerge::kWaves, [&](int64_t begin, int64_t end) {
    cpu::Group group;
    float* memory = aligned_memory(AttentionMerge::kWaves * (p.head_dim + 2));
    for (int64_t item = begin; item < end; ++item) merge_attention(group, p, grid, item, memory);
  });
}

}  // namespace

template <class T>
void launch(const AttentionParams<T>& p, const Parallel& parallel) {
  auto run = [&](auto type) {
    using Tile = typename decltype(type)::type;
    // A chunk of many columns has large results, which are written, and read by the merge.
    const AttentionColumns columns(Tile::kGroupColumns,
                                   cpu::NarrowTile<T, AttentionColumn>::kHeadColumns, 4);
    const AttentionGrid grid(p, columns);
    schedule(p, columns, [&]<AttentionStep kStep>(int64_t items) {
      if constexpr (kStep == AttentionStep::kAttend)
        attend<Tile>(p, grid, parallel);
      else
        merge(p, grid, items, parallel);
    });
  };
  cpu::with_tile_type<T, AttentionColumn>(run, p.head_dim, p.cache_format != CacheFormat::kPlain);
}

template void launch(const AttentionParams<float>&, const Parallel&);
template void launch(const AttentionParams<bf16>&, const Parallel&);
template void launch(const AttentionParams<fp16>&, const Parallel&);

}  // namespace blockdraft
