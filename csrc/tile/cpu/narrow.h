// The attention tile of a CPU for a few query columns: a row of plain decoding has as many as its
// GQA group. Keys and values are read where they lie, since staging them would cost more than the
// products. Reading limits it, so that it fetches the next tile during the products. It may have
// all KV heads of a row: they lie beside each other, and a CPU that reads one also prefetches the
// next.
#pragma once

#include "tile/cpu/attention.h"
#include "tile/cpu/order.h"

namespace blockdraft::cpu {

template <class T, class X>
class NarrowTile : public Group {
  static constexpr int kColumns = 4;  // of a panel, some of which may be empty
  static constexpr int kAhead = 8;    // rows

 public:
  static constexpr int kKeys = 64, kBuffers = 1;  // whose values stay in the L1
  static constexpr int kStreams = 1;
  static constexpr int kHeadColumns = 8, kGroupColumns = 16;  // of a KV head, and of all
  static constexpr bool kReadsCodes = true;

  // How far the keys of a KV head are from the first one's, and so on.
  struct Apart {
    int64_t keys, values, key_scales, value_scales;
  };
  const int heads;

  struct Panel : Columns<X, kColumns> {
    float* queries;  // [head_dim / kLanes][kColumns][kLanes], scaled, in the rows' order
    float* output;   // [kColumns][head_dim], likewise
    vec top, sum;    // maxima and sums of the columns, twice: of even and of odd keys
    int head;        // the KV head
  };

  // The floats that `memory` of the constructor needs, aligned to a cache line.
  static int64_t floats(int columns, int head_dim) {
    return int64_t(ceil_div(columns, kColumns)) * 2 * kColumns * head_dim;
  }
  // `heads`: KV heads, each with as many columns, whole panels if there are several. `coded`:
  // whether it reads codes, too.
  NarrowTile(float* memory, int head_dim, int heads, Apart apart, bool coded)
      : heads(heads), coded_(coded), memory_(memory), head_dim_(head_dim), apart_(apart) {}

  template <class Describe, class Query>
  void open(int n, Describe x, Query query, float scale) {
    panels_ = ceil_div(n, kColumns);
    for (int p = 0; p < panels_; ++p) {
      Panel& panel = panel_[p];
      panel.queries = memory_ + 2 * p * kColumns * head_dim_;
      panel.output = panel.queries + kColumns * head_dim_;
      panel.count = least(n - p * kColumns, kColumns);
      panel.head = p * heads / panels_;
      panel.top = splat(-INFINITY);
      panel.sum = vec{};
      std::fill(panel.output, panel.output + kColumns * head_dim_, 0.0f);
      for (int c = 0; c < kColumns; ++c) {
        if (c < panel.count) panel.x[c] = x(p * kColumns + c);
        const T* src = c < panel.count ? query(panel.x[c]) : nullptr;
        float* out = panel.queries + c * kLanes;
        auto stage = [&](vec x) {
          cpu::store(out, x);
          out += kColumns * kLanes;
        };
        if (!src)
          for (int d = 0; d < head_dim_; d += kLanes) stage(vec{});
        else
          in_order([&]<class O>(Order<O>) {
            each_vector<O>(src, [&](vec x) { stage(x * (coded_ ? scale * kLift : scale)); });
          });
      }
    }
  }

  template <class Place>
  void locate(Place place, int n) {
    for (int i = 0; i < n; ++i) places_[i] = place(i);
  }

  template <class Key, class Value>
  void load(Key key, Value value, int n) {
    Rows& rows = rows_[1 - staged_];
    rows.count = n;
    rows.codes = Codes::kNone;
    for (int i = 0; i < n; ++i) {
      rows.keys[i] = key(places_[i], i);
      rows.values[i] = value(places_[i], i);
    }
    if (!coded_) return;
    for (int head = 0; head < heads; ++head)
      for (Factors* factors : {&rows.key_factors, &rows.value_factors})
        std::fill_n((*factors)[head], n * kColumns, 1 / kLift);
  }

  template <class Key, class Value>
  void load_codes(bool fnuz, Key key, Value value, int n) {
    Rows& rows = rows_[1 - staged_];
    rows.count = n;
    rows.codes = fnuz ? Codes::kFnuz : Codes::kFn;
    // what codes and queries are not multiplied by
    const float factor = field_factor(fnuz) / kLift;
    const int64_t apart_keys = apart_.key_scales, apart_values = apart_.value_scales;
    for (int i = 0; i < n; ++i) {
      const CodedRow k = key(places_[i], i), v = value(places_[i], i);
      rows.keys[i] = reinterpret_cast<const T*>(k.codes);
      rows.values[i] = reinterpret_cast<const T*>(v.codes);
      for (int head = 0; head < heads; ++head) {
        set_factor(rows.key_factors[head], i, k.scale[head * apart_keys] * factor);
        set_factor(rows.value_factors[head], i, v.scale[head * apart_values] * factor);
      }
    }
  }

  void deposit(int) {
    staged_ = 1 - staged_;
    Rows& rows = rows_[staged_];
    const bool nan = rows.codes == Codes::kFn     ? has_nan<e4m3fn>(rows)
                     : rows.codes == Codes::kFnuz ? has_nan<e4m3fnuz>(rows)
                                                  : true;
    if (!nan) rows.codes = Codes::kNumbers;
  }

  template <class F>
  void each_panel(F f) {
    fetched_ = due_ = 0;
    // per pair of keys, and per step of the values
    pace_ = float(rows_[1 - staged_].count) / (panels_ * (kKeys / 2 + head_dim_ / (2 * kLanes)));
    for (int p = 0; p < panels_; ++p) {
      f(panel_[p]);
      first_ = false;
    }
    fetch(rows_[1 - staged_].count);
  }

  void scores(const Panel& panel) {
    const Rows& rows = rows_[staged_];
    const int64_t apart = panel.head * apart_.keys;
    by_type([&]<class C, class O>(const C*, Order<O>) {
      for (int i = 0; i < rows.count; i += 2) {
        if (first_ && rows.codes == Codes::kNone) fetch_own(i);
        fetch(due_ += pace_);
        const int second = least(i + 1, rows.count - 1);
        const vec two =
            dots<O>(as<C>(rows.keys[i]) + apart, as<C>(rows.keys[second]) + apart, panel.queries);
        const float* factors = rows.key_factors[panel.head] + i * kColumns;
        cpu::store(scores_ + i * kColumns, coded_ ? two * to_float(factors) : two);
      }
    });
    if (rows.count % 2) hide(rows.count);
  }

  template <class Visible>
  void mask(const Panel& panel, Visible visible) {
    for (int c = 0; c < panel.count; ++c) {
      const auto seen = visible(panel.x[c]);
      for (int i = 0; i < rows_[staged_].count; ++i)
        if (i < seen.from || i >= seen.to) scores_[i * kColumns + c] = -INFINITY;
    }
  }

  void absorb(Panel& panel) {
    weigh(panel);
    by_type([&]<class C, class O>(const C*, Order<O>) {
      constexpr int kUnit = Order<O>::kVectors * kLanes;
      int d = 0;
      for (; d + kUnit <= head_dim_; d += kUnit) {
        add_values<C, O, 0>(panel, d);
        if constexpr (kUnit > 2 * kLanes) add_values<C, O, 1>(panel, d);
      }
      for (; d < head_dim_; d += kLanes) add_values<C, O, -1>(panel, d);
    });
  }

  static int stream() { return 0; }
  static void begin() {}  // sums go on from chunk to chunk
  static void settle(int, bool) {}

  struct Output {
    const NarrowTile& tile;
    const float* column;
    static bool leader() { return true; }
    template <class D>
    void store(D* p, float scale) const {
      if (tile.coded_) scale *= kLift;
      tile.in_order([&]<class O>(Order<O>) {
        constexpr int kVectors = Order<O>::kVectors;
        const int dim = tile.head_dim_, whole = dim - dim % (kVectors * kLanes);
        for (int d = 0; d < dim; d += kVectors * kLanes) {
          const int count = d < whole ? kVectors : (dim - d) / kLanes;
          vec x[kVectors];
          for (int v = 0; v < count; ++v)
            x[v] = scale == 0 ? vec{} : to_float(column + d + v * kLanes) * scale;
          if (d < whole) Order<O>::restore(x);
          for (int v = 0; v < count; ++v) cpu::store(p + d + v * kLanes, x[v]);
        }
      });
    }
  };

  template <class F>
  void close(F f) {
    for (int p = 0; p < panels_; ++p) {
      const Panel& panel = panel_[p];
      for (int c = 0; c < panel.count; ++c)
        f(panel.x[c], panel.top[c], panel.sum[c] + panel.sum[c + kColumns],
          Output{*this, panel.output + c * head_dim_});
    }
  }

 private:
  typedef float Factors[kGroupColumns / kColumns][kKeys * kColumns];  // of the KV heads
  struct Rows {
    Codes codes = Codes::kNone;  // what the pointers are to, if not to T
    const T *keys[kKeys], *values[kKeys];
    Factors key_factors, value_factors;  // if the tile reads codes
    int count = 0;
  };
  // f with the order of the rows.
  template <class F>
  void in_order(F f) const {
    coded_ ? f(Order<code>()) : f(Order<T>());
  }
  // f with a pointer of the type of the staged rows' elements, too.
  template <class F>
  void by_type(F f) const {
    const Order<code> order;
    switch (rows_[staged_].codes) {
      case Codes::kNumbers:
        return f(static_cast<const code*>(nullptr), order);
      case Codes::kFn:
        return f(static_cast<const e4m3fn*>(nullptr), order);
      case Codes::kFnuz:
        return f(static_cast<const e4m3fnuz*>(nullptr), order);
      case Codes::kNone:
        in_order([&](auto order) { f(static_cast<const T*>(nullptr), order); });
    }
  }
  template <class C>
  static const C* as(const T* row) {
    return reinterpret_cast<const C*>(row);
  }
  template <class C>
  bool has_nan(const Rows& rows) const {
    bytes marks{};
    for (int head = 0; head < heads; ++head)
      for (int i = 0; i < rows.count; ++i) {
        if (first_ && head == 0 && i % 2 == 0) fetch_own(i);
        mark_nan(marks, as<C>(rows.keys[i]) + head * apart_.keys,
                 as<C>(rows.values[i]) + head * apart_.values, head_dim_);
      }
    return any_nan(marks);
  }
  static void set_factor(float* factors, int i, float x) {
    const four all = {x, x, x, x};
    std::memcpy(factors + i * kColumns, &all, sizeof all);
  }

  // f of each vector of a row.
  template <class O, class F>
  void each_vector(const T* row, F f) const {
    constexpr int kUnit = Order<O>::kVectors * kLanes;
    int d = 0;
    for (; d + kUnit <= head_dim_; d += kUnit) {
      vec a, b;
      read_pair<O, 0>(row + d, a, b);
      f(a), f(b);
      if constexpr (kUnit > 2 * kLanes) {
        read_pair<O, 1>(row + d, a, b);
        f(a), f(b);
      }
    }
    for (; d < head_dim_; d += kLanes) f(to_float(row + d));
  }

  // Two keys by the columns.
  template <class O, class C>
  __attribute__((always_inline)) vec dots(const C* first, const C* second,
                                          const float* queries) const {
    constexpr int kUnit = Order<O>::kVectors * kLanes;
    vec a[kColumns] = {}, b[kColumns] = {};
    auto add = [&](vec x, vec y) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) {
        const vec query = to_float(queries + c * kLanes);
        a[c] += x * query;
        b[c] += y * query;
      }
      queries += kColumns * kLanes;
    };
    auto add_pair = [&]<int kPair>(int d) __attribute__((always_inline)) {
      vec x, y, other_x, other_y;
      read_pair<O, kPair>(first + d, x, other_x);
      read_pair<O, kPair>(second + d, y, other_y);
      add(x, y);
      add(other_x, other_y);
    };
    int d = 0;
    for (; d + kUnit <= head_dim_; d += kUnit) {
      add_pair.template operator()<0>(d);
      if constexpr (kUnit > 2 * kLanes) add_pair.template operator()<1>(d);
    }
    for (; d < head_dim_; d += kLanes) add(read_eight(first + d), read_eight(second + d));
    return sums_of(a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]);
  }

  void hide(int key) { std::fill_n(scores_ + key * kColumns, kColumns, -INFINITY); }

  // Scores become weights; the columns' maxima and sums move on, and the outputs shrink. A vector
  // has two keys of all columns.
  void weigh(Panel& panel) {
    const Rows& rows = rows_[staged_];
    const int n = rows.count * kColumns;
    const float* factors = rows.value_factors[panel.head];
    vec top = panel.top;
    for (int i = 0; i < n; i += kLanes) top = maximum(top, to_float(scores_ + i));
    vec turned;
    for (int j = 0; j < kLanes; ++j) turned[j] = top[(j + kColumns) % kLanes];
    top = maximum(top, turned);
    const vec base = top == splat(-INFINITY) ? vec{} : top;  // as finite_or_zero
    vec sum{};
    for (int i = 0; i < n; i += kLanes) {
      const vec weight = power(to_float(scores_ + i) - base);
      cpu::store(scores_ + i, coded_ ? weight * to_float(factors + i) : weight);
      sum += weight;
    }
    const vec shrink = power(panel.top - base);
    const bool grown = __builtin_memcmp(&panel.top, &top, sizeof top) != 0;
    panel.sum = panel.sum * shrink + sum;
    panel.top = top;
    if (!grown) return;
    for (int c = 0; c < kColumns; ++c)
      for (int d = 0; d < head_dim_; d += kLanes) {
        float* out = panel.output + c * head_dim_ + d;
        cpu::store(out, to_float(out) * shrink[c]);
      }
  }

  // 2^x for x <= 0, 0 for -inf, NaN for NaN.
  static vec power(vec x) {
    const vec within = exp2_within(maximum(splat(-126.0f), x));
    return x == splat(-INFINITY) ? vec{} : within;
  }

  // Adds the weighted values of pair kPair of the unit at d, or (-1) of the vector there.
  template <class C, class O, int kPair>
  __attribute__((noinline)) void add_values(const Panel& panel, int d) {
    constexpr int kVectors = kPair < 0 ? 1 : 2;
    fetch(due_ += pace_);
    const Rows& rows = rows_[staged_];
    const int64_t first = panel.head * apart_.values + d;
    float* const output = panel.output + d + most(kPair, 0) * 2 * kLanes;
    vec sums[kColumns][kVectors];
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sums[c][v] = to_float(output + c * head_dim_ + v * kLanes);
    for (int i = 0; i < rows.count; ++i) {
      const C* row = as<C>(rows.values[i]) + first;
      vec value[2];
      if constexpr (kPair < 0)
        value[0] = read_eight(row);
      else
        read_pair<O, kPair>(row, value[0], value[1]);
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) {
        const vec weight = splat(scores_[i * kColumns + c]);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sums[c][v] += weight * value[v];
      }
    }
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v)
        cpu::store(output + c * head_dim_ + v * kLanes, sums[c][v]);
  }

  // Prefetches the next tile up to a row into the L2: it is larger than the L1.
  void fetch(float end) {
    const Rows& ahead = rows_[1 - staged_];
    for (; fetched_ < end && fetched_ < ahead.count; ++fetched_) prefetch(ahead, fetched_);
  }
  // Of the first tile, which nothing has prefetched: rows ahead of key i.
  void fetch_own(int i) const {
    const Rows& rows = rows_[staged_];
    const int end = least(i + kAhead + 2, rows.count);
    for (int j = i ? i + kAhead : 0; j < end; ++j) prefetch(rows, j);
  }
  void prefetch(const Rows& rows, int i) const {
    const int size = heads * head_dim_ * (rows.codes == Codes::kNone ? sizeof(T) : 1);
    const char *key = as<char>(rows.keys[i]), *value = as<char>(rows.values[i]);
    for (int byte = 0; byte < size; byte += 64) {
      __builtin_prefetch(key + byte, 0, 2);
      __builtin_prefetch(value + byte, 0, 2);
    }
  }

  const bool coded_;
  float* memory_;
  int head_dim_, panels_ = 0, staged_ = 0, fetched_ = 0, places_[kKeys];
  bool first_ = true;  // no tile is done yet
  float due_ = 0, pace_ = 0;
  Apart apart_;
  Rows rows_[2];
  Panel panel_[kGroupColumns / kColumns];
  alignas(64) float scores_[(kKeys + 1) * kColumns];
};

static_assert(AttentionTarget<NarrowTile<float, int>, float, int>);

}  // namespace blockdraft::cpu
