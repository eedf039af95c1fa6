// Attention of verify rows and proposals over a paged prefix and each other: the kernel body,
// written against the tile layer (tile/tile.h). An item is a row tile of one request under one KV
// head and one split of its prefix; the query heads of the GQA group are columns side by side, so
// that a key is read once for all of them. Split lengths depend on the target and on the request's
// own prefix alone: a request's bits do not depend on its batch, nor on the number of threads.
#pragma once

#include "tile/tile.h"

namespace blockdraft {

constexpr int kMostSplits = 32;  // of a prefix; a longer one gets longer splits

template <class T>
struct AttentionParams {
  const T *q, *k, *v, *k_cache, *v_cache;
  int64_t q_row, q_head, k_row, k_head, v_row, v_head;           // strides in elements
  int64_t k_page, k_slot, k_kv_head, v_page, v_slot, v_kv_head;  // of the caches
  const int32_t *block_table, *cu_rows, *prefix_lens, *draft_len, *branch;
  int64_t table_row, branch_row;
  T* out;
  float *lse, *workspace;  // lse may be null; workspace [splits][total_rows][query_heads][head_dim
                           // + 2] where a prefix has several
  int64_t out_row, out_head, lse_row, total_rows;
  int batch, query_heads, kv_heads, head_dim, page_shift, mask_rows, proposals;
  int window;  // 0: none
  int split;   // least keys of a split
  int max_rows, max_prefix;
  float scale;  // of the logits, times log2(e): scores are powers of 2
  bool bidirectional;

  template <class F>
  void each_pointer(F f) {
    f(q), f(k), f(v), f(k_cache), f(v_cache), f(block_table), f(cu_rows), f(prefix_lens),
        f(draft_len), f(branch);
    f(out), f(lse), f(workspace);
  }
  int verify_rows(int request) const {
    return cu_rows[request + 1] - cu_rows[request] - mask_rows * proposals;
  }
  float* partial(int split, int64_t row,
                 int head) const {  // unnormalised output, maximum, sum of a split
    return workspace + ((split * total_rows + row) * query_heads + head) * (head_dim + 2);
  }
};

struct AttentionSplits {
  int length, count;
  AttentionSplits(int prefix, int split)
      : length(most(ceil_div(ceil_div(prefix, split), kMostSplits), 1) * split),
        count(most(ceil_div(prefix, length), 1)) {}
};

struct AttentionItem {
  int request, kv_head, first_row, rows;  // rows of the request, counted within it
  int split, splits, first_key,
      stop_key;  // its part of the prefix; the last split has the keys of this pass too
};

// Items by host-known maxima; those that a request does not have are empty. Row tiles are
// neighbours, then splits, for the sake of shared caches.
template <class T>
struct AttentionGrid {
  int group_columns, tiles, splits;
  int64_t items;

  AttentionGrid(const AttentionParams<T>& p, int group_columns)
      : group_columns(group_columns),
        tiles(row_tiles(p, p.max_rows)),
        splits(AttentionSplits(p.max_prefix, p.split).count),
        items(int64_t(p.batch) * p.kv_heads * splits * tiles) {}

  int row_tiles(const AttentionParams<T>& p, int rows) const {
    return ceil_div(rows, group_columns / (p.query_heads / p.kv_heads));
  }

  // Splits rows evenly: 272 rows in two tiles are 136 + 136.
  bool item(const AttentionParams<T>& p, int64_t id, AttentionItem& out) const {
    const int tile = id % tiles, split = id / tiles % splits,
              kv_head = id / tiles / splits % p.kv_heads;
    const int request = int(id / tiles / splits / p.kv_heads);
    const int rows = p.cu_rows[request + 1] - p.cu_rows[request], own_tiles = row_tiles(p, rows);
    const int prefix = p.prefix_lens[request];
    const AttentionSplits own(prefix, p.split);
    if (tile >= own_tiles || split >= own.count) return false;
    const int first = int(int64_t(rows) * tile / own_tiles),
              last = int(int64_t(rows) * (tile + 1) / own_tiles);
    out = {request,
           kv_head,
           first,
           last - first,
           split,
           own.count,
           split * own.length,
           least(prefix, (split + 1) * own.length)};
    return true;
  }
};

// A query: what it sees of its own pass is verify keys below `limit` and its proposal. A dead row
// has limit 0.
struct AttentionColumn {
  int row, head, limit, proposal, index, position;
};

// The branch of a live proposal, 0 of a dead one.
template <class T>
int attention_branch(const AttentionParams<T>& p, int request, int proposal) {
  const int branch = p.branch[request * p.branch_row + proposal];
  return branch >= 1 && branch <= p.draft_len[request] + 1 ? branch : 0;
}

template <class T>
AttentionColumn attention_column(const AttentionParams<T>& p, int request, int row, int head) {
  const int verify = p.verify_rows(request), prefix = p.prefix_lens[request];
  if (row < verify)
    return {row, head, row <= p.draft_len[request] ? row + 1 : 0, -1, row, prefix + row};
  const int proposal = (row - verify) / p.mask_rows, index = (row - verify) % p.mask_rows;
  const int branch = attention_branch(p, request, proposal);
  return {row, head, branch, proposal, index, prefix + branch + index};
}

template <class T>
void store_lse(const AttentionParams<T>& p, int64_t row, int head, bool live, float top,
               float sum) {
  if (p.lse)
    p.lse[row * p.lse_row + head] =
        live ? (top + __builtin_log2f(sum)) * 0.693147181f : -__builtin_inff();
}

struct KeySpan {
  int from, to;
};

template <class Tile, class T>
class Attention {
 public:
  Attention(Tile& tile, const AttentionParams<T>& params, const AttentionItem& item)
      : tile_(tile),
        p_(params),
        item_(item),
        first_(Tile::uniform(params.cu_rows[item.request])),
        prefix_(Tile::uniform(params.prefix_lens[item.request])),
        draft_len_(Tile::uniform(params.draft_len[item.request])),
        verify_(Tile::uniform(params.verify_rows(item.request))) {
    survey();
  }

  void run() {
    const int group = p_.query_heads / p_.kv_heads;
    tile_.open(
        item_.rows * group,
        [&](int c) {
          return attention_column(p_, item_.request, item_.first_row + c / group,
                                  item_.kv_head * group + c % group);
        },
        [&](const AttentionColumn& x) {
          return x.limit ? p_.q + (first_ + x.row) * p_.q_row + x.head * p_.q_head : nullptr;
        },
        p_.scale);
    KeyTile now = next({kPrefix, start_, 0});
    if (now.count) {
      KeyTile ahead = next(now);
      locate(now);
      load(now);
      locate(ahead);
      for (bool more = true; more;) {
        const KeyTile after = next(ahead);
        if constexpr (Tile::kBuffers == 1)
          tile_.barrier();  // everyone is done with the tile before
        tile_.deposit(now.count);
        tile_.barrier();
        load(ahead);
        locate(after);
        tile_.each_panel([&](auto& panel) { absorb(panel, now); });
        more = ahead.start != now.start || ahead.segment != now.segment;
        now = ahead, ahead = after;
      }
    }
    tile_.close([&](const AttentionColumn& x, float top, float sum, auto output) {
      emit(x, top, sum, output);
    });
  }

 private:
  static constexpr int kPrefix = -2, kVerify = -1;  // segments of the keys; j >= 0 is proposal j

  struct KeyTile {
    int segment, start, count;
  };

  // What the rows of the item see as a whole: verify keys below limit_, prefix keys from start_.
  void survey() {
    const int last = item_.first_row + item_.rows,
              masks = (item_.first_row - verify_) / p_.mask_rows;
    int lowest = INT32_MAX;  // position of a row, from the prefix on
    limit_ = least(least(last, verify_), draft_len_ + 1);
    if (limit_ > item_.first_row)
      lowest = item_.first_row;
    else
      limit_ = 0;
    for (int j = item_.first_row > verify_ ? masks : 0;
         j < p_.proposals && verify_ + j * p_.mask_rows < last; ++j) {
      const int branch = Tile::uniform(attention_branch(p_, item_.request, j));
      if (branch == 0) continue;
      limit_ = most(limit_, branch);
      lowest = least(lowest, branch + most(item_.first_row - verify_ - j * p_.mask_rows, 0));
    }
    const int reach = p_.window && limit_ ? lowest - p_.window + 1 : INT32_MIN / 2;
    start_ = limit_ ? most(item_.first_key, prefix_ + reach) : item_.stop_key;
    verify_start_ = most(reach, 0);
  }

  // The end of a segment's keys, as far as the item's rows reach.
  int stop(int segment) const {
    if (segment == kPrefix) return item_.stop_key;
    if (segment == kVerify) return limit_;
    const int before = item_.first_row + item_.rows - verify_ -
                       segment * p_.mask_rows;  // rows of the item from its start on
    if (before <= 0 || before >= item_.rows + p_.mask_rows ||
        Tile::uniform(attention_branch(p_, item_.request, segment)) == 0)
      return 0;
    return p_.bidirectional ? p_.mask_rows : least(p_.mask_rows, before);
  }

  // The key tile after t that some row of the item may see; t itself if it is the last.
  KeyTile next(const KeyTile& t) const {
    int segment = t.segment, start = t.start + t.count;
    while (start >= stop(segment)) {
      if (item_.split + 1 < item_.splits || segment + 1 >= p_.proposals) return t;
      ++segment;
      start = segment == kVerify ? verify_start_ : 0;
    }
    return {segment, start, least(stop(segment) - start, Tile::kKeys)};
  }

  void locate(const KeyTile& t) {
    const int32_t* pages = p_.block_table + item_.request * p_.table_row;
    tile_.locate(
        [&](int i) { return t.segment == kPrefix ? pages[(t.start + i) >> p_.page_shift] : 0; },
        t.count);
  }

  void load(const KeyTile& t) {
    const bool cached = t.segment == kPrefix;
    const int64_t own = first_ + t.start + (t.segment < 0 ? 0 : verify_ + t.segment * p_.mask_rows);
    const T* keys = cached ? p_.k_cache + item_.kv_head * p_.k_kv_head
                           : p_.k + own * p_.k_row + item_.kv_head * p_.k_head;
    const T* values = cached ? p_.v_cache + item_.kv_head * p_.v_kv_head
                             : p_.v + own * p_.v_row + item_.kv_head * p_.v_head;
    const int64_t key_slot = cached ? p_.k_slot : p_.k_row,
                  value_slot = cached ? p_.v_slot : p_.v_row;
    const int start = cached ? t.start : 0, slots = cached ? (1 << p_.page_shift) - 1 : INT32_MAX;
    tile_.load(
        [&](int page, int i) { return keys + page * p_.k_page + ((start + i) & slots) * key_slot; },
        [&](int page, int i) {
          return values + page * p_.v_page + ((start + i) & slots) * value_slot;
        },
        t.count);
  }

  // The keys of a segment that a column sees: always an interval.
  KeySpan span(const AttentionColumn& x, int segment) const {
    if (x.limit == 0) return {0, 0};
    if (segment >= 0)
      return {0, x.proposal != segment ? 0 : p_.bidirectional ? p_.mask_rows : x.index + 1};
    const int from = p_.window ? x.position - p_.window + 1 : 0;
    return segment == kPrefix ? KeySpan{from, prefix_} : KeySpan{from - prefix_, x.limit};
  }

  template <class Panel>
  void absorb(Panel& panel, const KeyTile& t) const {
    const int last = t.start + t.count;
    if (!panel.any([&](const AttentionColumn& x) {
          const KeySpan seen = span(x, t.segment);
          return seen.from < last && seen.to > t.start && seen.from < seen.to;
        }))
      return;
    tile_.scores(panel);
    if (panel.any([&](const AttentionColumn& x) {
          const KeySpan seen = span(x, t.segment);
          return x.limit && (seen.from > t.start || seen.to < last);
        }))
      tile_.mask(panel, [&](const AttentionColumn& x) {
        const KeySpan seen = span(x, t.segment);
        return KeySpan{seen.from - t.start, seen.to - t.start};
      });
    tile_.absorb(panel);
  }

  template <class Output>
  void emit(const AttentionColumn& x, float top, float sum, Output output) const {
    const int64_t row = first_ + x.row;
    if (item_.splits > 1) {
      float* partial = p_.partial(item_.split, row, x.head);
      output.store(partial, 1.0f);
      if (output.leader()) partial[p_.head_dim] = top, partial[p_.head_dim + 1] = sum;
      return;
    }
    const bool live = x.limit > 0;
    output.store(p_.out + row * p_.out_row + x.head * p_.out_head, live ? 1.0f / sum : 0.0f);
    if (output.leader()) store_lse(p_, row, x.head, live, top, sum);
  }

  Tile& tile_;
  const AttentionParams<T>& p_;
  AttentionItem item_;
  int64_t first_;
  int prefix_, draft_len_, verify_, limit_, start_, verify_start_;
};

// One row and head of a request whose prefix has several splits, merged in their order.
template <class Group, class T>
void merge_attention(Group& group, const AttentionParams<T>& p, int request, int row, int head) {
  const int splits = AttentionSplits(p.prefix_lens[request], p.split).count;
  if (splits == 1 || row >= p.cu_rows[request + 1] - p.cu_rows[request]) return;
  const int64_t packed = p.cu_rows[request] + row;
  float top = kLowest, sum = 0;
  for (int s = 0; s < splits; ++s) top = most(top, p.partial(s, packed, head)[p.head_dim]);
  auto weight = [&](int s) {
    return __builtin_exp2f(p.partial(s, packed, head)[p.head_dim] - top);
  };
  for (int s = 0; s < splits; ++s) sum += weight(s) * p.partial(s, packed, head)[p.head_dim + 1];
  const bool live = attention_column(p, request, row, head).limit > 0;
  T* out = p.out + packed * p.out_row + head * p.out_head;
  group.combine(
      p.head_dim, splits, weight, [&](int s) { return p.partial(s, packed, head); },
      [&](int d, float total) { Group::store(out + d, live ? total / sum : 0.0f); });
  if (group.leader()) store_lse(p, packed, head, live, top, sum);
}

}  // namespace blockdraft
