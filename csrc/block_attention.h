// Attention of verify rows and proposals over a paged prefix and each other: the kernel body, written against the tile layer.
// The includer provides `namespace tile` (one of csrc/tile's targets). One item is a row tile of one request under one KV
// head and one split of its prefix; the query heads of the GQA group are columns side by side, so that a key is read once
// for all of them. Split lengths depend on the target and on the request's own prefix alone: a request's bits do not depend
// on its batch, nor on the number of threads.
#pragma once

#include <cstdint>

#include "tile/tile.h"

namespace blockdraft {

struct AttentionShape {
  int query_heads, kv_heads, head_dim, page, mask_rows, proposals;
  bool bidirectional;
  int window;   // 0: none
  float scale;  // of the logits, times log2(e): scores are powers of 2
};

template <class T>
struct AttentionTensors {
  const T *q, *k, *v, *k_cache, *v_cache;
  int64_t q_row, q_head, k_row, k_head, v_row, v_head;           // strides in elements
  int64_t k_page, k_slot, k_kv_head, v_page, v_slot, v_kv_head;  // of the caches
  const int32_t *block_table, *cu_rows, *prefix_lens, *draft_len, *branch;
  int64_t table_row, branch_row;
};

struct AttentionItem {
  int request, kv_head, first_row, rows;   // rows of the request, counted within it
  int first_key, keys;                     // its split of the prefix
  bool own_keys;                           // also the keys of this pass
};

// What a row sees of its own pass: verify keys below `limit`, and its proposal.
struct AttentionRow {
  int limit, proposal, index, position;
};

template <class T>
AttentionRow attention_row(const AttentionShape& shape, const AttentionTensors<T>& t, int request, int row) {
  const int masks = shape.mask_rows * shape.proposals;
  const int verify = t.cu_rows[request + 1] - t.cu_rows[request] - masks;
  const int prefix = t.prefix_lens[request], draft_len = t.draft_len[request];
  if (row < verify) return {row <= draft_len ? row + 1 : 0, -1, row, prefix + row};
  const int proposal = (row - verify) / shape.mask_rows, index = (row - verify) % shape.mask_rows;
  const int branch = t.branch[request * t.branch_row + proposal];
  const bool live = branch >= 1 && branch <= draft_len + 1;
  return {live ? branch : 0, proposal, index, prefix + branch + index};
}

// Columns of one panel: the rows behind them, and what the panel as a whole can see.
struct AttentionColumns {
  AttentionRow row[tile::kColumns];
  int count, limit, lowest_floor, highest_floor;  // floor: a key is seen iff its position is above it
};

template <class T>
class Attention {
 public:
  Attention(const AttentionShape& shape, const AttentionTensors<T>& tensors, const AttentionItem& item, float* memory)
      : shape_(shape), t_(tensors), item_(item), scratch_(memory, shape.head_dim),
        group_(shape.query_heads / shape.kv_heads), panels_(panels_of(item.rows, group_)), columns_(panels_) {
    for (int p = 0; p < panels_; ++p) columns_[p] = columns(p);
  }

  static int panels_of(int rows, int group) { return (rows * group + tile::kColumns - 1) / tile::kColumns; }

  // Runs the item; emit(row, head, panel, column) is then called for each of its rows and query heads.
  template <class Emit>
  void run(Emit emit) {
    for (int p = 0; p < panels_; ++p) stage_queries(p);
    prefix();
    if (item_.own_keys) {
      const int verify = t_.cu_rows[item_.request + 1] - t_.cu_rows[item_.request] - shape_.mask_rows * shape_.proposals;
      const int live = t_.draft_len[item_.request] + 1;  // dead rows may hold anything, NaN included
      own_keys(0, live < verify ? live : verify, -1);
      for (int j = 0; j < shape_.proposals; ++j) own_keys(verify + j * shape_.mask_rows, shape_.mask_rows, j);
    }
    for (int p = 0; p < panels_; ++p) {
      const auto panel = scratch_.panel(p);
      for (int c = 0; c < columns_[p].count; ++c) emit(row_of(p, c), head_of(p, c), panel, c);
    }
  }

  bool live(int row) const { return attention_row(shape_, t_, item_.request, row).limit > 0; }

 private:
  int row_of(int panel, int c) const { return item_.first_row + (panel * tile::kColumns + c) / group_; }
  int head_of(int panel, int c) const { return item_.kv_head * group_ + (panel * tile::kColumns + c) % group_; }

  AttentionColumns columns(int panel) const {
    AttentionColumns out{};
    const int left = item_.rows * group_ - panel * tile::kColumns;
    out.count = left < tile::kColumns ? left : tile::kColumns;
    out.lowest_floor = INT32_MAX, out.highest_floor = INT32_MIN;
    for (int c = 0; c < out.count; ++c) {
      const AttentionRow row = out.row[c] = attention_row(shape_, t_, item_.request, row_of(panel, c));
      if (row.limit == 0) continue;
      const int floor = shape_.window ? row.position - shape_.window : -1;
      out.limit = row.limit > out.limit ? row.limit : out.limit;
      out.lowest_floor = floor < out.lowest_floor ? floor : out.lowest_floor;
      out.highest_floor = floor > out.highest_floor ? floor : out.highest_floor;
    }
    return out;
  }

  void stage_queries(int p) const {
    const auto panel = scratch_.panel(p);
    tile::begin(panel);
    const int count = columns_[p].count;
    for (int c = 0; c < count; ++c) {
      const int64_t row = t_.cu_rows[item_.request] + row_of(p, c);
      tile::stage_column(panel, c, t_.q + row * t_.q_row + head_of(p, c) * t_.q_head, shape_.scale);
    }
    tile::clear_columns(panel, count);
  }

  // Cached keys first_key .. first_key + keys, from the first that any row's window reaches.
  void prefix() const {
    int start = item_.first_key;
    if (shape_.window) {
      int lowest = INT32_MAX;
      for (int p = 0; p < panels_; ++p) {
        const int floor = columns_[p].lowest_floor;
        lowest = floor < lowest ? floor : lowest;
      }
      if (lowest == INT32_MAX) return;
      if (lowest + 1 > start) start = lowest + 1;
    }
    const int64_t request = item_.request;
    auto cached = [&](const T* cache, int64_t page_stride, int64_t slot_stride, int64_t head_stride, int key) {
      const int64_t page = t_.block_table[request * t_.table_row + key / shape_.page];
      return cache + page * page_stride + (key % shape_.page) * slot_stride + item_.kv_head * head_stride;
    };
    auto k_row = [&](int key) { return cached(t_.k_cache, t_.k_page, t_.k_slot, t_.k_kv_head, key); };
    auto v_row = [&](int key) { return cached(t_.v_cache, t_.v_page, t_.v_slot, t_.v_kv_head, key); };
    const int stop = item_.first_key + item_.keys;
    for (int key = start; key < stop; key += tile::kKeys) {
      const int count = stop - key < tile::kKeys ? stop - key : tile::kKeys, next = key + count;
      const int ahead = stop - next < tile::kKeys ? stop - next : tile::kKeys;
      tile::stage_rows(scratch_, scratch_.keys, [&](int i) { return k_row(key + i); }, count);
      tile::stage_rows(scratch_, scratch_.values, [&](int i) { return v_row(key + i); }, count);
      for (int p = 0; p < panels_; ++p) {
        for (int i = ahead * p / panels_; i < ahead * (p + 1) / panels_; ++i) {  // the next tile, a share with each panel
          tile::prefetch(k_row(next + i), shape_.head_dim);
          tile::prefetch(v_row(next + i), shape_.head_dim);
        }
        const AttentionColumns& own = columns_[p];
        if (own.limit == 0 || key + count - 1 <= own.lowest_floor) continue;
        const auto panel = scratch_.panel(p);
        tile::scores(panel, scratch_, count);
        if (key <= own.highest_floor)
          tile::mask(scratch_, [&](int i, int c) { return c < own.count && key + i > own.row[c].position - shape_.window; }, count);
        tile::absorb(panel, scratch_, count);
      }
    }
  }

  // Keys of this pass: rows first .. first + count of the request, verify rows (proposal -1) or one proposal.
  void own_keys(int first, int count, int proposal) const {
    for (int start = 0; start < count; start += tile::kKeys) {
      const int n = count - start < tile::kKeys ? count - start : tile::kKeys;
      bool staged = false;
      for (int p = 0; p < panels_; ++p) {
        const AttentionColumns& own = columns_[p];
        auto sees = [&](int i, int c) {
          const AttentionRow& row = own.row[c];
          const int key = start + i;
          if (c >= own.count || row.limit == 0) return false;
          if (proposal >= 0) return row.proposal == proposal && (shape_.bidirectional || key <= row.index);
          return key < row.limit && (!shape_.window || t_.prefix_lens[item_.request] + key > row.position - shape_.window);
        };
        bool any = false;
        for (int c = 0; c < own.count && !any; ++c)
          any = own.row[c].limit > 0 && (proposal < 0 ? own.row[c].limit > start : own.row[c].proposal == proposal);
        if (!any) continue;
        if (!staged) {
          const int64_t row = t_.cu_rows[item_.request] + first + start;
          tile::stage_rows(scratch_, scratch_.keys,
                           [&](int i) { return t_.k + (row + i) * t_.k_row + item_.kv_head * t_.k_head; }, n);
          tile::stage_rows(scratch_, scratch_.values,
                           [&](int i) { return t_.v + (row + i) * t_.v_row + item_.kv_head * t_.v_head; }, n);
          staged = true;
        }
        const auto panel = scratch_.panel(p);
        tile::scores(panel, scratch_, n);
        tile::mask(scratch_, sees, n);
        tile::absorb(panel, scratch_, n);
      }
    }
  }

  AttentionShape shape_;
  AttentionTensors<T> t_;
  AttentionItem item_;
  tile::Scratch scratch_;
  int group_, panels_;
  tile::PerPanel<AttentionColumns> columns_;
};

}  // namespace blockdraft
