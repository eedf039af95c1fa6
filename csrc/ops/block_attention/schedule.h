// The items of block_attention's launches. An item is a row tile of one request with one KV head
// and one split of its prefix. The query heads of the GQA group are adjacent columns, so that a key
// is read once for all of them.
//
// A prefix consists of chunks, whose results are joined as a binary tree: 0 with 1, 2 with 3, then
// these two, and so on. A split is some of them that are a node of the tree: an item joins those,
// and the merge the rest. So how many chunks an item takes changes no bit. How long chunks are
// depends only on the target and on the request's own prefix and rows, so that a request's bits
// depend neither on its batch nor on the number of threads.
#pragma once

#include "ops/block_attention/params.h"

namespace blockdraft {

enum class AttentionStep { kAttend, kMerge };

// The columns of a target's groups.
struct AttentionColumns {
  int most;
  int few;     // up to so many, an item may take several chunks
  int longer;  // with more, so many times longer chunks, since results are larger; >= split_chunks

  constexpr AttentionColumns(int most, int few = INT32_MAX, int longer = 1)
      : most(most), few(few), longer(longer) {}
  // Whether a request has few. A GPU divides slowly.
  template <class T>
  bool are_few(const AttentionParams<T>& p, int rows) const {
    return int64_t(rows) * p.query_heads <= int64_t(few) * p.kv_heads;
  }
};

// What is read of a request, all of it at once.
struct AttentionRequest {
  int number, first, rows, prefix, drafts;

  AttentionRequest() = default;
  AttentionRequest(const Rows& all, int number)
      : number(number),
        first(all.first(number)),
        rows(all.count(number)),
        prefix(all.prefix(number)),
        drafts(all.drafts(number)) {}
  int verify_rows(const Rows& all) const { return rows - all.mask_rows * all.proposals; }
};

struct AttentionSplits {
  int chunk_keys, length, count;  // keys of a chunk and of a split; splits

  template <class T>
  AttentionSplits(const AttentionParams<T>& p, const AttentionRequest& of,
                  const AttentionColumns& columns) {
    const bool few = columns.are_few(p, of.rows);
    chunk_keys = p.chunk_keys * (few ? 1 : columns.longer);
    while (int64_t(chunk_keys) * p.max_chunks < of.prefix) chunk_keys *= 2;
    length = chunk_keys * (few ? p.split_chunks : 1);
    count = most(ceil_div(of.prefix, length), 1);
  }

  // The most splits of any prefix up to the longest. The longest one itself may have fewer, since
  // a longer prefix may have longer chunks.
  template <class T>
  static int at_most(const AttentionParams<T>& p) {
    const int chunks = least(ceil_div(p.rows.max_prefix, p.chunk_keys), p.max_chunks);
    return most(ceil_div(chunks, p.split_chunks), 1);
  }
};

struct AttentionItem {
  AttentionRequest of;
  int kv_head;
  int first_row, rows;                     // rows of the request, counted within it
  int split, splits, first_key, stop_key;  // the last split has the keys of this pass too
  int chunk_keys;
};

// Numbers the items by host-known maxima, so some do not exist. Row tiles are numbered fastest,
// then splits, so that items which read the same keys run at the same time and share a cache.
struct AttentionGrid {
  AttentionColumns columns;
  int tile_rows, tiles, splits;  // the most rows of a tile
  int64_t items;

  template <class T>
  AttentionGrid(const AttentionParams<T>& p, const AttentionColumns& columns)
      : columns(columns),
        tile_rows(columns.most / p.group()),
        tiles(ceil_div(p.rows.max_rows, tile_rows)),
        splits(AttentionSplits::at_most(p)),
        items(int64_t(p.rows.batch) * p.kv_heads * splits * tiles) {}

  // Returns false if the request has no such item. Rows are divided evenly: two tiles of 272 rows
  // have 136 each.
  template <class T>
  bool item(const AttentionParams<T>& p, uint32_t id, AttentionItem& out) const {
    const uint32_t chunk = id / uint32_t(tiles);  // there are fewer than 2^31 items
    const uint32_t head = chunk / uint32_t(splits), request = head / uint32_t(p.kv_heads);
    const int tile = id % uint32_t(tiles), split = chunk % uint32_t(splits);
    const AttentionRequest of(p.rows, request);
    const AttentionSplits own(p, of, columns);
    const uint32_t rows = of.rows, own_tiles = ceil_div<uint32_t>(rows, tile_rows);
    if (tile >= int(own_tiles) || split >= own.count) return false;
    const Part part = part_of(rows, own_tiles, tile);
    out = {.of = of,
           .kv_head = int(head % uint32_t(p.kv_heads)),
           .first_row = part.first,
           .rows = part.count,
           .split = split,
           .splits = own.count,
           .first_key = split * own.length,
           .stop_key = least(of.prefix, (split + 1) * own.length),
           .chunk_keys = own.chunk_keys};
    return true;
  }
};

// A group of the merge has some rows and heads, and for each so many waves as there are parts of
// its splits, which are nodes of the tree, too.
struct AttentionMerge {
  static constexpr int kWaves = 8, kNodes = 8;  // of a group; of a part
  int parts = 1, items;

  explicit AttentionMerge(int splits) {
    while (parts * kNodes < splits) parts *= 2;
    items = kWaves / parts;
  }
};

// What a kernel of a GPU is given. It begins with the parameters, which are read again.
template <class T>
struct AttentionWork {
  AttentionParams<T> params;
  AttentionGrid grid;

  BLOCKDRAFT_POINTERS(params)
};

// Calls run<step>(groups) for each launch.
template <class T, class Run>
void schedule(const AttentionParams<T>& p, const AttentionColumns& columns, Run run) {
  const AttentionGrid grid(p, columns);
  run.template operator()<AttentionStep::kAttend>(grid.items);
  if (grid.splits > 1)
    run.template operator()<AttentionStep::kMerge>(
        ceil_div<int64_t>(int64_t(p.rows.batch) * p.rows.max_rows * p.query_heads,
                          AttentionMerge(grid.splits).items));
}

}  // namespace blockdraft
