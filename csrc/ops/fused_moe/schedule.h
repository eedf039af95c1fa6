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
bool find_item(const Group& group, const P& p, int id, int tiles, int columns, int32_t* found,
               MoeItem& item) {
  // Whether the item is of the present expert, which has so many pairs.
  int count = 0;
  auto is_found = [&] {
    const int items = ceil_div(count, columns) * tiles;
    if (id < items) return true;
    id -= items;
    return false;
  };
  // The item's part of them.
  auto part = [&] {
    const int chunks = ceil_div(count, columns);
    item.tile = id / chunks;
    const Part own = part_of(count, chunks, id % chunks);
    item.count = own.count;
    return own;
  };
  if (!p.few()) {
    int begin = 0;
    bool is_in = false;
    for (int first = 0; !is_in; first += 64) {
      if (first >= p.num_experts) return false;
      const int some = least(p.num_experts - first, 64);
      const auto ends = group.list(some, [&](int i) { return p.offsets[first + i + 1]; });
      for (int i = 0; i < some && !is_in; ++i) {
        begin += count;
        count = ends[i] - begin;
        item.expert = first + i;
        is_in = is_found();
      }
    }
    const int start = begin + part().first;
    group.each(item.count, [&](int i) { found[i] = p.order[start + i]; });
  } else {
    const int pairs = p.pairs();
    const auto experts = group.list(pairs, [&](int pair) { return p.expert(pair); });
    uint64_t left = experts.bits([](int expert) { return expert >= 0; }), own;
    do {
      if (!left) return false;
      item.expert = experts[__builtin_ctzll(left)];
      own = experts.bits([&](int expert) { return expert == item.expert; });
      left &= ~own;
      count = __builtin_popcountll(own);
    } while (!is_found());
    const int start = part().first;
    group.each(pairs, [&](int pair) {
      const int rank = __builtin_popcountll(own & ((uint64_t(1) << pair) - 1)) - start;
      if (own >> pair & 1 && rank >= 0 && rank < item.count) found[rank] = pair;
    });
  }
  group.barrier();
  return true;
}

}  // namespace blockdraft
