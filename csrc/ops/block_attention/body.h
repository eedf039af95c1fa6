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
AttentionColumn attention_column(const AttentionParams<T>& p, const AttentionRequest& of, int row,
                                 int head) {
  const int masked = row - of.verify_rows(p.rows);
  const AttentionColumn verify = {row, head, row <= of.drafts ? row + 1 : 0,
                                  -1,  row,  of.prefix + row};
  if (p.rows.proposals == 0) return verify;
  const int proposal = most(masked, 0) / p.rows.mask_rows;
  const int index = masked - proposal * p.rows.mask_rows;
  const int branch = p.rows.live_branch(of.number, proposal);  // in all threads: no wait of its own
  if (masked < 0) return verify;
  return {row, head, branch, proposal, index, of.prefix + branch + index};
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
      : tile_(tile), p_(params), item_(item) {
    int* const fields[] = {&item_.of.number, &item_.kv_head,  &item_.first_row,
                           &item_.rows,      &item_.split,    &item_.splits,
                           &item_.first_key, &item_.stop_key, &item_.chunk_keys};
    for (int* field : fields) *field = Tile::uniform(*field);
    read_request();
    survey();
  }

  void run() {
    const int group = p_.group(), own = item_.rows * group;
    begin(item_.first_key);
    int heads = 1;  // a CPU reads those of a few rows together, which lie beside each other
    if constexpr (requires { tile_.heads; }) heads = tile_.heads;
    tile_.open(
        own * heads,
        [&](int c) {
          const int head = (item_.kv_head + (heads == 1 ? 0 : c / own)) * group + c % group;
          return attention_column(p_, item_.of,
                                  item_.first_row + (heads == 1 ? c : c % own) / group, head);
        },
        [&](const AttentionColumn& x) {
          return x.limit ? p_.q.at(int64_t(item_.of.first) + x.row, x.head) : nullptr;
        },
        p_.scale);
    if constexpr (kOnlyCodes) tile_.use(scales());
    fetch_whole_tile(true);
    for (int chunk = 0;; ++chunk) {
      tile_.begin();
      absorb_chunk(stream_whole_tiles());
      const bool last = stop_key_ == item_.stop_key;
      tile_.settle(chunk, last);
      if (last) break;
      begin(stop_key_);
      fetch_whole_tile(false);
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
    bool operator==(const KeyTile&) const = default;
  };

  // Whether the keys of this pass follow the chunk.
  bool own() const { return stop_key_ == item_.stop_key && item_.split + 1 == item_.splits; }

  // The chunk from that key on.
  void begin(int first) {
    const bool last = item_.stop_key - first <= item_.chunk_keys;
    stop_key_ = Tile::uniform(last ? item_.stop_key : first + item_.chunk_keys);
    start_ = Tile::uniform(least(most(first, from_), stop_key_));
  }

  // Whether the target has a faster loop for whole tiles of cached keys that every column sees.
  static constexpr bool kStreams =
      requires(Tile tile, AttentionCache<T> cache) { tile.stream_cached(cache, 0, 0, 0); };
  static auto streamed_type() {
    if constexpr (kStreams)
      return typename Tile::Cached{};
    else
      return T{};
  }
  typedef decltype(streamed_type()) Streamed;
  static constexpr bool kOnlyCodes = Format<Streamed>::kScaled;  // no cache of T

  int whole_tiles(int start, int stop) const {
    return start >= whole_from_ && start < stop ? (stop - start) / Tile::kKeys : 0;
  }
  // Those of the first n tiles that are this wave's.
  int own_tiles(int n) const {
    return most(n - tile_.stream() + Tile::kStreams - 1, 0) / Tile::kStreams;
  }

  // Asks for the first that is this wave's, if there is one. After the queries, something is asked for
  // always: if there were a way into the loop of tiles on which nothing was, the compiler would let
  // each turn wait as if it were the first.
  void fetch_whole_tile(bool always) {
    if constexpr (kStreams) {
      const bool any = own_tiles(whole_tiles(start_, stop_key_)) > 0;
      const auto from = cached<Streamed>();
      if (always)
        tile_.fetch(any ? from : one_key(from), any ? start_ + tile_.stream() * Tile::kKeys : 0);
      else if (any && !tile_.fetched())
        tile_.fetch(from, start_ + tile_.stream() * Tile::kKeys);
    }
  }
  // Returns how many tiles of the chunk are done.
  int stream_whole_tiles() {
    if constexpr (kStreams) {
      const int count = whole_tiles(start_, stop_key_), mine = tile_.stream() * Tile::kKeys;
      const int following = least(stop_key_ + item_.chunk_keys, item_.stop_key);
      const bool on =
          count * Tile::kKeys == stop_key_ - start_ && own_tiles(whole_tiles(stop_key_, following));
      tile_.stream_cached(cached<Streamed>(), start_ + mine, Tile::uniform(own_tiles(count)),
                          Tile::uniform(on ? stop_key_ + mine : -1));
      return count;
    }
    return 0;
  }

  // The tiles of the chunk from number `done` on that are this wave's.
  void absorb_chunk(int done) {
    read_request();
    const KeyTile before = {kPrefix, start_ + done * Tile::kKeys, 0};
    if constexpr (Tile::kStreams > 1)
      absorb_every(before, done);
    else
      absorb_ahead(before);
  }

  // Few tiles: not worth the registers to load one while another is absorbed.
  void absorb_every(const KeyTile& before, int number) {
    KeyTile now = next(before);
    if (now == before) return;
    for (bool more = true; more; ++number) {
      if (number % Tile::kStreams == tile_.stream()) {
        locate(now);
        load(now);
        tile_.deposit(now.count);
        tile_.barrier();
        tile_.each_panel([&](auto& panel) { absorb(panel, now); });
      }
      const KeyTile following = next(now);
      more = !(following == now);
      now = following;
    }
    tile_.forget();
  }

  void absorb_ahead(const KeyTile& before) {
    KeyTile now = next(before);
    if (now.count == 0) return;
    KeyTile ahead = next(now);
    locate(now);
    load(now);
    locate(ahead);
    for (bool more = true; more;) {
      const KeyTile after = next(ahead);
      if constexpr (Tile::kBuffers == 1) tile_.barrier();  // all waves have read the previous tile
      tile_.deposit(now.count);
      tile_.barrier();
      load(ahead);
      locate(after);
      tile_.each_panel([&](auto& panel) { absorb(panel, now); });
      more = !(ahead == now);
      now = ahead;
      ahead = after;
    }
  }

  void read_request() {
    rows_ = Tile::reload(p_).rows;
    item_.of = AttentionRequest(rows_, item_.of.number);
    verify_ = item_.of.verify_rows(rows_);
  }

  // Which keys any row of the item sees: verify keys up to limit_, and any from reach_ on, counted
  // from the prefix's end, which is key from_; every row sees those from whole_from_ on.
  void survey() {
    const int last = item_.first_row + item_.rows;
    const int masks = (item_.first_row - verify_) / rows_.mask_rows;
    // The positions of live rows, counted from the prefix's end.
    int lowest = INT32_MAX, highest = 0;
    limit_ = least(least(last, verify_), item_.of.drafts + 1);
    if (limit_ > item_.first_row) {
      lowest = item_.first_row;
      highest = limit_ - 1;
    } else {
      limit_ = 0;
    }
    for (int j = item_.first_row > verify_ ? masks : 0;
         j < rows_.proposals && verify_ + j * rows_.mask_rows < last; ++j) {
      const int branch = rows_.live_branch(item_.of.number, j);
      if (branch == 0) continue;
      limit_ = most(limit_, branch);
      lowest = least(lowest, branch + most(item_.first_row - verify_ - j * rows_.mask_rows, 0));
      highest = most(highest, branch + rows_.mask_rows - 1);
    }
    const bool windowed = p_.window && limit_;
    reach_ = windowed ? lowest - p_.window + 1 : INT32_MIN / 2;
    from_ = limit_ ? item_.of.prefix + reach_ : INT32_MAX;
    whole_from_ = limit_ && p_.page_shift >= 4
                      ? (windowed ? item_.of.prefix + highest - p_.window + 1 : 0)
                      : INT32_MAX;
  }

  // The end of the keys of a segment that some row of the item may see.
  int stop(int segment) const {
    if (segment == kPrefix) return stop_key_;
    if (segment == kVerify) return limit_;
    // The number of rows from the start of the segment's proposal to the end of the item.
    const int before = item_.first_row + item_.rows - verify_ - segment * rows_.mask_rows;
    if (before <= 0 || before >= item_.rows + rows_.mask_rows ||
        rows_.live_branch(item_.of.number, segment) == 0)
      return 0;
    return rows_.bidirectional ? rows_.mask_rows : least(rows_.mask_rows, before);
  }

  // The next key tile after t that some row of the item may see; t itself if it is the last.
  KeyTile next(const KeyTile& t) const {
    int segment = t.segment, start = t.start + t.count;
    while (start >= stop(segment)) {
      if (!own() || segment + 1 >= rows_.proposals) return t;
      ++segment;
      start = segment == kVerify ? most(reach_, 0) : 0;
    }
    return {segment, start, least(stop(segment) - start, Tile::kKeys)};
  }

  // Parameters that would take many registers if they stayed in them are read again.
  template <class C>
  AttentionCache<C> cached() const {
    const AttentionParams<T>& p = Tile::reload(p_);
    const auto &k = p.k_cache, &v = p.v_cache;
    return {.pages = p.block_table.at(item_.of.number),
            .page_shift = p.page_shift,
            .keys = reinterpret_cast<const C*>(k.data) + item_.kv_head * k.stride[2],
            .values = reinterpret_cast<const C*>(v.data) + item_.kv_head * v.stride[2],
            .key_page = k.stride[0],
            .value_page = v.stride[0],
            .key_slot = int(k.stride[1]),
            .value_slot = int(v.stride[1])};
  }

  // Of this KV head.
  AttentionScales scales() const {
    const AttentionParams<T>& p = Tile::reload(p_);
    return {.keys = p.k_scale.at(0, item_.kv_head),
            .values = p.v_scale.at(0, item_.kv_head),
            .key_page = p.k_scale.stride[0],
            .value_page = p.v_scale.stride[0]};
  }

  // The keys of a tile of this pass, as if they were a page.
  AttentionCache<T> of_this_pass(const KeyTile& t) const {
    const AttentionParams<T>& p = Tile::reload(p_);
    const int before = t.segment < 0 ? 0 : verify_ + t.segment * p.rows.mask_rows;
    const int64_t first = int64_t(item_.of.first) + t.start + before;
    return {.pages = nullptr,
            .page_shift = 31,
            .keys = p.k.at(first, item_.kv_head),
            .values = p.v.at(first, item_.kv_head),
            .key_page = 0,
            .value_page = 0,
            .key_slot = int(p.k.stride[0]),
            .value_slot = int(p.v.stride[0])};
  }

  // As if a cache of any length were one key of this pass. The first of cu_rows, a 0, is its page.
  AttentionCache<Streamed> one_key(AttentionCache<Streamed> cache) const {
    const AttentionCache<T> own = of_this_pass({kVerify, 0, 0});
    cache.pages = rows_.cu_rows;
    cache.page_shift = own.page_shift;
    cache.keys = reinterpret_cast<const Streamed*>(own.keys);
    cache.values = reinterpret_cast<const Streamed*>(own.values);
    cache.key_slot = cache.value_slot = 0;
    return cache;
  }

  void locate(const KeyTile& t) {
    const AttentionParams<T>& p = Tile::reload(p_);
    const int32_t* pages = p.block_table.at(item_.of.number);
    tile_.locate(
        [&](int i) { return t.segment == kPrefix ? pages[(t.start + i) >> p.page_shift] : 0; },
        t.count);
  }

  // A tile of a cache of fp8, for targets that decode it. Where rows lie is read again for values:
  // a GPU has no registers for both.
  void load_codes(const KeyTile& t) {
    auto rows = [&](auto cache, auto scale) {
      return [=, this, read = false, from = View<const T, 3>{}, scales = View<const float, 2>{}](
                 int page, int i) mutable {
        if (!read) {
          const AttentionParams<T>& p = Tile::reload(p_);
          from = p.*cache;
          scales = p.*scale;
          read = true;
        }
        const int64_t slot = (t.start + i) & ((1 << p_.page_shift) - 1);
        return CodedRow{reinterpret_cast<const uint8_t*>(from.data) + page * from.stride[0] +
                            slot * from.stride[1] + item_.kv_head * from.stride[2],
                        scales.at(page, item_.kv_head)};
      };
    };
    typedef AttentionParams<T> P;
    tile_.load_codes(p_.cache_format == CacheFormat::kFnuz, rows(&P::k_cache, &P::k_scale),
                     rows(&P::v_cache, &P::v_scale), t.count);
  }

  // Cached keys and those of this pass share one code path: inlined loads are long, and two copies
  // would take more of the instruction cache.
  void load(const KeyTile& t) {
    bool cached = t.segment == kPrefix;
    if constexpr (Tile::kReadsCodes) {
      if (cached && (kOnlyCodes || p_.cache_format != CacheFormat::kPlain)) return load_codes(t);
      cached &= !kOnlyCodes;
    }
    const AttentionCache<T> from = cached ? this->cached<T>() : of_this_pass(t);
    const int start = cached ? t.start : 0, within = int((1u << from.page_shift) - 1);
    auto slot = [&](int i) { return (start + i) & within; };
    tile_.load(
        [&](int page, int i) { return from.keys + page * from.key_page + slot(i) * from.key_slot; },
        [&](int page, int i) {
          return from.values + page * from.value_page + slot(i) * from.value_slot;
        },
        t.count);
  }

  // The keys of a segment that a column sees, which are always an interval.
  KeySpan span(const AttentionColumn& x, int segment) const {
    if (x.limit == 0) return {0, 0};
    if (segment >= 0)
      return {0, x.proposal != segment ? 0 : rows_.bidirectional ? rows_.mask_rows : x.index + 1};
    const int prefix = item_.of.prefix, from = p_.window ? x.position - p_.window + 1 : 0;
    return segment == kPrefix ? KeySpan{from, prefix} : KeySpan{from - prefix, x.limit};
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
    const int64_t row = int64_t(item_.of.first) + x.row;
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
  // rows_, item_.of and verify_ are read again for each chunk, so that they take no registers while
  // tiles are streamed.
  Rows rows_;
  AttentionItem item_;
  int verify_, limit_, reach_, from_, whole_from_;
  int start_, stop_key_;  // of the chunk
};

// Joins the splits of a group's rows and heads. `memory`: kWaves x (head_dim + 2) floats of the
// group.
template <class Group, class T>
void merge_attention(Group& group, const AttentionParams<T>& params, const AttentionGrid& grid,
                     uint32_t id, float* memory) {
  using Merge = AttentionMerge;
  const Merge merge(grid.splits);
  const int dim = params.head_dim, size = dim + 2;
  const int64_t apart = params.partial(1, 0, 0) - params.partial(0, 0, 0);
  // f(p, request, row, head, splits) for a row and head of the group.
  auto visit = [&](int i, auto f) {
    const AttentionParams<T>& p = Group::reload(params);
    const uint32_t item = id * merge.items + i, heads = p.query_heads, entry = item / heads;
    const int request = entry / uint32_t(p.rows.max_rows), head = item % heads;
    if (request >= p.rows.batch) return;
    const AttentionRequest of(p.rows, Group::uniform(request));
    const int row = entry % uint32_t(p.rows.max_rows);
    if (row >= of.rows) return;
    const int splits = Group::uniform(AttentionSplits(p, of, grid.columns).count);
    if (splits > 1) f(p, attention_column(p, of, row, head), int64_t(of.first) + row, splits);
  };
  auto finish = [&](const auto& wave, const auto& tree, const float* nodes,
                    const AttentionColumn& x, int64_t row) {
    const AttentionParams<T>& p = Group::reload(params);
    const bool sees = x.limit > 0 && tree.sum() != 0;
    T* out = p.out.at(row, x.head);
    wave.each(dim / 2, [&](int i) {
      float values[2];
      tree.join(nodes + 2 * i, values);
      for (int j = 0; j < 2; ++j)
        Group::store(out + 2 * i + j, sees ? values[j] / tree.sum() : 0.0f);
    });
    if (wave.leader()) store_lse(p, row, x.head, sees, tree.top(), tree.sum());
  };
  group.by_waves(Merge::kWaves, [&](int i, const auto& wave) {
    visit(i / merge.parts,
          [&](const AttentionParams<T>& p, const AttentionColumn& x, int64_t row, int splits) {
            const int first = i % merge.parts * Merge::kNodes;
            if (first >= splits) return;
            const float* nodes = p.partial(first, row, x.head);
            const AttentionTree<Merge::kNodes> tree(nodes, apart,
                                                    least(splits - first, Merge::kNodes), dim);
            if (merge.parts == 1) return finish(wave, tree, nodes, x, row);
            float* out = memory + i * size;
            wave.each(dim / 2, [&](int j) { tree.join(nodes + 2 * j, out + 2 * j); });
            if (!wave.leader()) return;
            out[dim] = tree.top();
            out[dim + 1] = tree.sum();
          });
  });
  if (merge.parts == 1) return;
  group.barrier();
  group.by_waves(merge.items, [&](int i, const auto& wave) {
    visit(i, [&](const AttentionParams<T>&, const AttentionColumn& x, int64_t row, int splits) {
      const float* nodes = memory + i * merge.parts * size;
      const AttentionTree<Merge::kWaves> tree(nodes, size, ceil_div(splits, Merge::kNodes), dim);
      finish(wave, tree, nodes, x, row);
    });
  });
}

}  // namespace blockdraft
