// Kernel body of block_attention: attention of verify rows and proposals over a paged prefix and
// each other, on the tile layer (tile/attention.h). schedule.h defines its items.
#pragma once

#include "ops/block_attention/schedule.h"
#include "tile/attention.h"

namespace blockdraft {

// A query, that is a row and a head. Of the keys of this pass it sees the verify keys below `limit`
// and its own proposal (-1: none). A dead row has limit 0.
struct AttentionColumn {
  int row, head, limit, proposal, index, position;
};

template <class T>
AttentionColumn attention_column(const AttentionParams<T>& p, int request, int row, int head) {
  const int verify = p.rows.verify_rows(request);
  const int prefix = p.rows.prefix_lens[request];
  if (row < verify)
    return {row, head, row <= p.rows.draft_len[request] ? row + 1 : 0, -1, row, prefix + row};
  const int proposal = (row - verify) / p.rows.mask_rows;
  const int index = (row - verify) % p.rows.mask_rows;
  const int branch = p.rows.live_branch(request, proposal);
  return {row, head, branch, proposal, index, prefix + branch + index};
}

template <class T>
void store_lse(const AttentionParams<T>& p, int64_t row, int head, bool sees, float top,
               float sum) {
  if (p.lse)
    p.lse.at(row)[head] = sees ? (top + __builtin_log2f(sum)) * 0.693147181f : -__builtin_inff();
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
        first_(Tile::uniform(params.rows.cu_rows[item.request])),
        prefix_(Tile::uniform(params.rows.prefix_lens[item.request])),
        draft_len_(Tile::uniform(params.rows.draft_len[item.request])),
        verify_(Tile::uniform(params.rows.verify_rows(item.request))) {
    survey();
  }

  void run() {
    const int group = p_.group(), own = item_.rows * group;
    int heads = 1;  // a CPU reads those of a few rows together, which lie beside each other
    if constexpr (requires { tile_.heads; }) heads = tile_.heads;
    tile_.open(
        own * heads,
        [&](int c) {
          const int head = (item_.kv_head + (heads == 1 ? 0 : c / own)) * group + c % group;
          return attention_column(p_, item_.request,
                                  item_.first_row + (heads == 1 ? c : c % own) / group, head);
        },
        [&](const AttentionColumn& x) {
          return x.limit ? p_.q.at(first_ + x.row, x.head) : nullptr;
        },
        p_.scale);
    const int chunks = most(ceil_div(item_.stop_key - item_.first_key, item_.chunk_keys), 1);
    for (int chunk = 0; chunk < chunks; ++chunk) {
      begin(chunk, chunk + 1 == chunks);
      absorb_chunk(stream_whole_tiles());
      tile_.settle(chunk, chunk + 1 == chunks);
    }
    const AttentionParams<T>& p = Tile::reload(p_);
    tile_.close([&](const AttentionColumn& x, float top, float sum, auto output) {
      emit(p, x, top, sum, output);
    });
  }

 private:
  static constexpr int kPrefix = -2, kVerify = -1;  // key segments; segment j >= 0 is proposal j

  struct KeyTile {
    int segment, start, count;
  };

  void begin(int chunk, bool last) {
    const int first = item_.first_key + chunk * item_.chunk_keys;
    stop_key_ = last ? item_.stop_key : first + item_.chunk_keys;
    own_ = last && item_.split + 1 == item_.splits;
    start_ = limit_ ? most(first, prefix_ + reach_) : stop_key_;
  }

  // Where a target has a faster loop for whole tiles of cached keys that every column sees. Returns
  // how many tiles of the chunk are done.
  int stream_whole_tiles() {
    if constexpr (requires { tile_.stream_cached(cached(), 0, 0, 0); }) {
      auto tiles = [&](int start, int stop) {
        const bool whole = limit_ && p_.page_shift >= 4 && start >= prefix_ + sees_all_;
        return whole && start < stop ? (stop - start) / Tile::kKeys : 0;
      };
      auto of_stream = [&](int n) {
        return most(n - tile_.stream() + Tile::kStreams - 1, 0) / Tile::kStreams;
      };
      const int count = tiles(start_, stop_key_), own = tile_.stream() * Tile::kKeys;
      const int ahead = of_stream(tiles(stop_key_, least(stop_key_ + item_.chunk_keys, item_.stop_key)));
      tile_.stream_cached(cached(), start_ + own, of_stream(count),
                          ahead && count * Tile::kKeys == stop_key_ - start_ ? stop_key_ + own : -1);
      return count;
    }
    return 0;
  }

  // The tiles of the chunk from number `done` on that are this stream's.
  void absorb_chunk(int done) {
    constexpr int kStreams = Tile::kStreams;
    const int skipped = (tile_.stream() - done) & (kStreams - 1);
    KeyTile now = next({kPrefix, start_ + done * Tile::kKeys, 0}, 1 + skipped);
    if (now.count == 0) return;
    KeyTile ahead = next(now, kStreams);
    locate(now);
    load(now);
    if constexpr (Tile::kAhead) locate(ahead);
    for (bool more = true; more;) {
      const KeyTile after = next(ahead, kStreams);
      if constexpr (Tile::kBuffers == 1)
        tile_.barrier();  // all waves have read the previous tile
      tile_.deposit(now.count);
      tile_.barrier();
      if constexpr (Tile::kAhead) {
        load(ahead);
        locate(after);
      }
      tile_.each_panel([&](auto& panel) { absorb(panel, now); });
      if constexpr (!Tile::kAhead) {
        locate(ahead);
        load(ahead);
      }
      more = ahead.start != now.start || ahead.segment != now.segment;
      now = ahead;
      ahead = after;
    }
  }

  // Which keys any row of the item sees: verify keys verify_start_ .. limit_ and prefix keys from
  // reach_ on, counted from the prefix's end; every row sees those from sees_all_ on.
  void survey() {
    const int last = item_.first_row + item_.rows;
    const int masks = (item_.first_row - verify_) / p_.rows.mask_rows;
    // The positions of live rows, counted from the prefix's end.
    int lowest = INT32_MAX, highest = 0;
    limit_ = least(least(last, verify_), draft_len_ + 1);
    if (limit_ > item_.first_row) {
      lowest = item_.first_row;
      highest = limit_ - 1;
    } else {
      limit_ = 0;
    }
    for (int j = item_.first_row > verify_ ? masks : 0;
         j < p_.rows.proposals && verify_ + j * p_.rows.mask_rows < last; ++j) {
      const int branch = Tile::uniform(p_.rows.live_branch(item_.request, j));
      if (branch == 0) continue;
      limit_ = most(limit_, branch);
      lowest = least(lowest, branch + most(item_.first_row - verify_ - j * p_.rows.mask_rows, 0));
      highest = most(highest, branch + p_.rows.mask_rows - 1);
    }
    const bool windowed = p_.window && limit_;
    reach_ = windowed ? lowest - p_.window + 1 : INT32_MIN / 2;
    sees_all_ = windowed ? highest - p_.window + 1 : INT32_MIN / 2;
    verify_start_ = most(reach_, 0);
  }

  // The end of the keys of a segment that some row of the item may see.
  int stop(int segment) const {
    if (segment == kPrefix) return stop_key_;
    if (segment == kVerify) return limit_;
    // The number of rows from the start of the segment's proposal to the end of the item.
    const int before = item_.first_row + item_.rows - verify_ - segment * p_.rows.mask_rows;
    if (before <= 0 || before >= item_.rows + p_.rows.mask_rows ||
        Tile::uniform(p_.rows.live_branch(item_.request, segment)) == 0)
      return 0;
    return p_.rows.bidirectional ? p_.rows.mask_rows : least(p_.rows.mask_rows, before);
  }

  // The n-th key tile after t that some row of the item may see; t itself if there are fewer.
  KeyTile next(const KeyTile& t, int n) const {
    KeyTile found = t;
    for (int i = 0; i < n; ++i) {
      const KeyTile following = next(found);
      if (following.segment == found.segment && following.start == found.start &&
          following.count == found.count)
        return t;
      found = following;
    }
    return found;
  }
  KeyTile next(const KeyTile& t) const {
    int segment = t.segment, start = t.start + t.count;
    while (start >= stop(segment)) {
      if (!own_ || segment + 1 >= p_.rows.proposals) return t;
      ++segment;
      start = segment == kVerify ? verify_start_ : 0;
    }
    return {segment, start, least(stop(segment) - start, Tile::kKeys)};
  }

  AttentionCache<T> cached() const {
    const auto &k = p_.k_cache, &v = p_.v_cache;
    return {p_.block_table.at(item_.request), p_.page_shift,
            k.at(0, 0, item_.kv_head),        v.at(0, 0, item_.kv_head),
            k.stride[0], k.stride[1], v.stride[0], v.stride[1]};
  }

  void locate(const KeyTile& t) {
    const int32_t* pages = p_.block_table.at(item_.request);
    tile_.locate(
        [&](int i) { return t.segment == kPrefix ? pages[(t.start + i) >> p_.page_shift] : 0; },
        t.count);
  }

  // A tile of a cache of fp8, for targets that decode it.
  void load_codes(const KeyTile& t) {
    auto row = [&](const auto& cache, const auto& scale) {
      const auto* codes = reinterpret_cast<const uint8_t*>(cache.data);
      return [=, this, &scale](int page, int i) {
        const int64_t slot = (t.start + i) & ((1 << p_.page_shift) - 1);
        const int64_t place = page * cache.stride[0] + slot * cache.stride[1];
        return CodedRow{codes + place + item_.kv_head * cache.stride[2],
                        *scale.at(page, item_.kv_head)};
      };
    };
    tile_.load_codes(p_.cache_format == CacheFormat::kFnuz, row(p_.k_cache, p_.k_scale),
                     row(p_.v_cache, p_.v_scale), t.count);
  }

  // Cached keys and those of this pass share one code path: inlined loads are long, and two copies
  // would take more of the instruction cache.
  void load(const KeyTile& t) {
    const bool cached = t.segment == kPrefix;
    if constexpr (Tile::kReadsCodes)
      if (cached && p_.cache_format != CacheFormat::kPlain) return load_codes(t);
    const int before = t.segment < 0 ? 0 : verify_ + t.segment * p_.rows.mask_rows;
    const int64_t own = first_ + t.start + before;
    const T* keys = cached ? p_.k_cache.at(0, 0, item_.kv_head) : p_.k.at(own, item_.kv_head);
    const T* values = cached ? p_.v_cache.at(0, 0, item_.kv_head) : p_.v.at(own, item_.kv_head);
    const int64_t key_slot = cached ? p_.k_cache.stride[1] : p_.k.stride[0];
    const int64_t value_slot = cached ? p_.v_cache.stride[1] : p_.v.stride[0];
    const int start = cached ? t.start : 0;
    const int slots = cached ? (1 << p_.page_shift) - 1 : INT32_MAX;
    auto slot = [&](int i) { return (start + i) & slots; };
    tile_.load(
        [&](int page, int i) { return keys + page * p_.k_cache.stride[0] + slot(i) * key_slot; },
        [&](int page, int i) { return values + page * p_.v_cache.stride[0] + slot(i) * value_slot; },
        t.count);
  }

  // The keys of a segment that a column sees, which are always an interval.
  KeySpan span(const AttentionColumn& x, int segment) const {
    if (x.limit == 0) return {0, 0};
    if (segment >= 0)
      return {0, x.proposal != segment   ? 0
                 : p_.rows.bidirectional ? p_.rows.mask_rows
                                         : x.index + 1};
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
  void emit(const AttentionParams<T>& p, const AttentionColumn& x, float top, float sum,
            Output output) const {
    const int64_t row = first_ + x.row;
    if (item_.splits > 1) {
      float* partial = p.partial(item_.split, row, x.head);
      output.store(partial, 1.0f);
      if (output.leader()) {
        partial[p.head_dim] = top;
        partial[p.head_dim + 1] = sum;
      }
      return;
    }
    const bool sees = x.limit > 0 && sum != 0;
    output.store(p.out.at(row, x.head), sees ? 1.0f / sum : 0.0f);
    if (output.leader()) store_lse(p, row, x.head, sees, top, sum);
  }

  Tile& tile_;
  const AttentionParams<T>& p_;
  AttentionItem item_;
  int64_t first_;
  int prefix_, draft_len_, verify_, limit_, reach_, sees_all_, verify_start_;
  int start_, stop_key_;  // of the chunk
  bool own_;              // whether the keys of this pass follow
};

// Joins the splits of one row and head; nothing if the prefix has one. `memory`: kMergeParts x
// (head_dim + 2) floats of the group.
constexpr int kMergeNodes = 16, kMergeParts = 8;

template <class Group, class T>
void merge_attention(Group& group, const AttentionParams<T>& p, const AttentionColumns& columns,
                     int64_t item, float* memory) {
  const int head = item % p.query_heads, dim = p.head_dim;
  const int row = item / p.query_heads % p.rows.max_rows;
  const int request = item / p.query_heads / p.rows.max_rows;
  const int splits = AttentionSplits(p, request, columns).count;
  if (splits == 1 || row >= p.rows.count(request)) return;
  const int64_t packed = p.rows.cu_rows[request] + row;
  const int parts = ceil_div(splits, kMergeNodes), size = dim + 2;
  const int64_t apart = p.partial(1, 0, 0) - p.partial(0, 0, 0);
  group.by_waves(parts, [&](int part, const auto& wave) {
    const int first = part * kMergeNodes;
    const float* nodes = p.partial(first, packed, head);
    const AttentionTree<kMergeNodes> tree(nodes, apart, least(splits - first, kMergeNodes), dim);
    float* out = memory + part * size;
    wave.each(dim / 2, [&](int i) { tree.join(nodes + 2 * i, out + 2 * i); });
    if (!wave.leader()) return;
    out[dim] = tree.top();
    out[dim + 1] = tree.sum();
  });
  group.barrier();
  const AttentionTree<kMergeParts> tree(memory, size, parts, dim);
  const bool sees = attention_column(p, request, row, head).limit > 0 && tree.sum() != 0;
  T* out = p.out.at(packed, head);
  group.each(dim / 2, [&](int i) {
    float values[2];
    tree.join(memory + 2 * i, values);
    for (int j = 0; j < 2; ++j)
      Group::store(out + 2 * i + j, sees ? values[j] / tree.sum() : 0.0f);
  });
  if (group.leader()) store_lse(p, packed, head, sees, tree.top(), tree.sum());
}

}  // namespace blockdraft
