// The launches of fused_moe, and which part of its products an item is.
#pragma once

#include "ops/fused_moe/params.h"
#include "tile/group.h"

namespace blockdraft {

enum class MoeStep { kDispatch, kGateUp, kDown, kCombine };

constexpr int kSkippedRows = 16;  // rows without an expert that an item looks after

// Items of a product with so many output channels, in tiles of `rows` by `columns`: as many as any
// routing needs.
template <class P>
int64_t moe_items(const P& p, int channels, int rows, int columns) {
  const int pairs = p.pairs();
  const int chunks = least(pairs, pairs / columns + least(p.num_experts, pairs));
  return int64_t(chunks) * ceil_div(channels, rows);
}

// Groups of a step.
template <class P>
int64_t moe_groups(const P& p, MoeStep step, int rows, int columns) {
  if (step == MoeStep::kDispatch) return 1;
  if (step == MoeStep::kGateUp) return moe_items(p, 2 * p.inner, rows, columns);
  if (step == MoeStep::kCombine) return p.rows;
  const int skipped = p.choices == 1 ? ceil_div(p.rows, kSkippedRows) : 0;
  return moe_items(p, p.hidden, rows, columns) + skipped;
}

// Calls run<step>(groups) for each launch, where a group multiplies tiles of `rows` by `columns`.
template <class P, class Run>
void schedule(const P& p, int rows, int columns, Run run) {
  auto start = [&]<MoeStep kStep>() {
    run.template operator()<kStep>(moe_groups(p, kStep, rows, columns));
  };
  if (!p.few()) start.template operator()<MoeStep::kDispatch>();
  start.template operator()<MoeStep::kGateUp>();
  start.template operator()<MoeStep::kDown>();
  if (p.choices > 1) start.template operator()<MoeStep::kCombine>();
}

// Some pairs of one expert, by one tile of output channels.
struct MoeItem {
  int expert, tile, count;
};

// The item of number `id`, whose pairs go to `found` in the group's memory; false: this routing
// needs fewer items. Items that share weights follow each other.
template <class Group, class P>
bool find_item(const Group& group, const P& p, int64_t id, int tiles, int columns, int32_t* found,
               MoeItem& item) {
  // Where in an expert's `count` pairs the item's begin; -1: it is of another expert.
  auto start_in = [&](int count) {
    const int chunks = ceil_div(count, columns);
    if (id >= int64_t(chunks) * tiles) {
      id -= int64_t(chunks) * tiles;
      return -1;
    }
    item.tile = int(id / chunks);
    const Part own = part_of(count, chunks, int(id % chunks));
    item.count = own.count;
    return own.first;
  };
  if (!p.few()) {
    for (item.expert = 0; item.expert < p.num_experts; ++item.expert) {
      const int first = p.offsets[item.expert];
      const int start = start_in(p.offsets[item.expert + 1] - first);
      if (start < 0) continue;
      group.each(item.count, [&](int i) { found[i] = p.order[first + start + i]; });
      group.barrier();
      return true;
    }
    return false;
  }
  const int pairs = p.pairs();
  uint64_t left = group.ballot(pairs, [&](int pair) { return p.expert(pair) >= 0; });
  while (left) {
    item.expert = Group::uniform(p.expert(__builtin_ctzll(left)));
    const uint64_t own =
        group.ballot(pairs, [&](int pair) { return p.expert(pair) == item.expert; });
    left &= ~own;
    const int start = start_in(__builtin_popcountll(own));
    if (start < 0) continue;
    group.each(pairs, [&](int pair) {
      const int rank = __builtin_popcountll(own & ((uint64_t(1) << pair) - 1)) - start;
      if (own >> pair & 1 && rank >= 0 && rank < item.count) found[rank] = pair;
    });
    group.barrier();
    return true;
  }
  return false;
}

}  // namespace blockdraft
