// The items of block_attention's launches. An item is a row tile of one request with one KV head
// and one split of its prefix. The query heads of the GQA group are adjacent columns, so that a key
// is read once for all of them. Split lengths depend only on the target and on the request's own
// prefix, so that a request's bits depend neither on its batch nor on the number of threads.
#pragma once

#include "ops/block_attention/params.h"

namespace blockdraft {

enum class AttentionStep { kAttend, kMerge };

struct AttentionSplits {
  int length, count;
  AttentionSplits(int prefix, int split_keys, int max_splits)
      : length(most(ceil_div(ceil_div(prefix, split_keys), max_splits), 1) * split_keys),
        count(most(ceil_div(prefix, length), 1)) {}

  // The most splits of any prefix up to the longest. The longest one itself may have fewer: with at
  // most 32 splits, 33 units give 17 splits of two, but 32 units give 32 splits.
  static int at_most(int longest, int split_keys, int max_splits) {
    return most(least(ceil_div(longest, split_keys), max_splits), 1);
  }
};

struct AttentionItem {
  int request, kv_head;
  int first_row, rows;                     // rows of the request, counted within it
  int split, splits, first_key, stop_key;  // the last split has the keys of this pass too
};

// Numbers the items by host-known maxima, so some do not exist. Row tiles are numbered fastest,
// then splits, so that items which read the same keys run at the same time and share a cache.
template <class T>
struct AttentionGrid {
  int group_columns, tiles, splits;
  int64_t items;

  // `group_columns`: query columns that the target's groups hold.
  AttentionGrid(const AttentionParams<T>& p, int group_columns)
      : group_columns(group_columns),
        tiles(row_tiles(p, p.rows.max_rows)),
        splits(AttentionSplits::at_most(p.rows.max_prefix, p.split_keys, p.max_splits)),
        items(int64_t(p.rows.batch) * p.kv_heads * splits * tiles) {}

  int row_tiles(const AttentionParams<T>& p, int rows) const {
    return ceil_div(rows, group_columns / p.group());
  }

  // Returns false if the request has no such item. Rows are divided evenly: two tiles of 272 rows
  // have 136 each.
  bool item(const AttentionParams<T>& p, int64_t id, AttentionItem& out) const {
    const int tile = id % tiles;
    const int split = id / tiles % splits;
    const int kv_head = id / tiles / splits % p.kv_heads;
    const int request = int(id / tiles / splits / p.kv_heads);
    const int rows = p.rows.count(request);
    const int own_tiles = row_tiles(p, rows);
    const int prefix = p.rows.prefix_lens[request];
    const AttentionSplits own(prefix, p.split_keys, p.max_splits);
    if (tile >= own_tiles || split >= own.count) return false;
    const int first = int(int64_t(rows) * tile / own_tiles);
    const int last = int(int64_t(rows) * (tile + 1) / own_tiles);
    const int stop_key = least(prefix, (split + 1) * own.length);
    out = {request, kv_head, first, last - first, split, own.count, split * own.length, stop_key};
    return true;
  }
};

// Calls run<step>(groups) for each launch.
template <class T, class Run>
void schedule(const AttentionParams<T>& p, int group_columns, Run run) {
  const AttentionGrid<T> grid(p, group_columns);
  run.template operator()<AttentionStep::kAttend>(grid.items);
  if (grid.splits > 1)
    run.template operator()<AttentionStep::kMerge>(int64_t(p.rows.batch) * p.rows.max_rows *
                                                   p.query_heads);
}

}  // namespace blockdraft
