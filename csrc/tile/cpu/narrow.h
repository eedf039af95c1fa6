// The attention tile of a CPU for a few query columns: a row of plain decoding has as many as its
// GQA group. Keys and values are read where they lie, since staging them would cost more than the
// products. Reading limits it, so that it fetches the next tile during the products. It may have
// all KV heads of a row: they lie beside each other, and a CPU that reads one also prefetches the
// next.
#pragma once

#include "tile/cpu/attention.h"

namespace blockdraft::cpu {

template <class T, class X>
class NarrowTile : public Group {
  static constexpr int kColumns = 4;  // of a panel, some of which may be empty

 public:
  static constexpr int kKeys = 64, kBuffers = 1;  // whose values stay in the L1
  static constexpr int kStreams = 1;
  static constexpr int kHeadColumns = 8, kGroupColumns = 16;  // of a KV head, and of all
  static constexpr bool kReadsCodes = true;                   // of one KV head

  // How far the keys of a KV head are from the first one's, and the values.
  struct Apart {
    int64_t keys, values;
  };
  const int heads;

  struct Panel : Columns<X, kColumns> {
    float* queries;  // [head_dim / kLanes][kColumns][kLanes], scaled
    float* output;   // [kColumns][head_dim]
    vec top, sum;    // maxima and sums of the columns, twice: of even and of odd keys
    Apart apart;     // of its KV head
  };

  // The floats that `memory` of the constructor needs, aligned to a cache line.
  static int64_t floats(int columns, int head_dim) {
    return int64_t(ceil_div(columns, kColumns)) * 2 * kColumns * head_dim;
  }
  // `heads`: KV heads, each with as many columns, whole panels if there are several.
  NarrowTile(float* memory, int head_dim, int heads, Apart apart)
      : heads(heads), memory_(memory), head_dim_(head_dim), apart_(apart) {}

  template <class Describe, class Query>
  void open(int n, Describe x, Query query, float scale) {
    panels_ = ceil_div(n, kColumns);
    for (int p = 0; p < panels_; ++p) {
      Panel& panel = panel_[p];
      panel.queries = memory_ + 2 * p * kColumns * head_dim_;
      panel.output = panel.queries + kColumns * head_dim_;
      panel.count = least(n - p * kColumns, kColumns);
      const int head = p * heads / panels_;
      panel.apart = {head * apart_.keys, head * apart_.values};
      panel.top = splat(-INFINITY);
      panel.sum = vec{};
      std::fill(panel.output, panel.output + kColumns * head_dim_, 0.0f);
      for (int c = 0; c < kColumns; ++c) {
        if (c < panel.count) panel.x[c] = x(p * kColumns + c);
        const T* src = c < panel.count ? query(panel.x[c]) : nullptr;
        for (int d = 0; d < head_dim_; d += kLanes)
          cpu::store(panel.queries + d * kColumns + c * kLanes,
                     src ? to_float(src + d) * scale : vec{});
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
  }

  template <class Key, class Value>
  void load_codes(bool fnuz, Key key, Value value, int n) {
    Rows& rows = rows_[1 - staged_];
    rows.count = n;
    rows.codes = fnuz ? Codes::kFnuz : Codes::kFn;
    for (int i = 0; i < n; ++i) {
      const CodedRow k = key(places_[i], i), v = value(places_[i], i);
      rows.keys[i] = reinterpret_cast<const T*>(k.codes);
      rows.values[i] = reinterpret_cast<const T*>(v.codes);
      rows.key_scales[i] = k.scale;
      rows.value_scales[i] = v.scale;
    }
  }

  void deposit(int) { staged_ = 1 - staged_; }

  template <class F>
  void each_panel(F f) {
    fetched_ = 0;
    for (turn_ = 0; turn_ < panels_; ++turn_) f(panel_[turn_]);
  }

  void scores(const Panel& panel) {
    const Rows& rows = rows_[staged_];
    by_type(rows, [&]<class C>(const C*) {
      for (int i = 0; i < rows.count; i += 2) {
        fetch(i / 2 + 1);
        const int second = least(i + 1, rows.count - 1);
        float* out = scores_ + i * kColumns;
        dots(as<C>(rows.keys[i]) + panel.apart.keys, as<C>(rows.keys[second]) + panel.apart.keys,
             panel.queries, out);
        if constexpr (!std::is_same_v<C, T>) {
          const vec scale = pair(rows.key_scales[i], rows.key_scales[second]);
          cpu::store(out, to_float(out) * scale);
        }
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
    const Rows& rows = rows_[staged_];
    by_type(rows, [&]<class C>(const C*) {
      if constexpr (!std::is_same_v<C, T>)
        for (int i = 0; i < rows.count; i += 2) {
          float* weights = scores_ + i * kColumns;
          const int second = least(i + 1, rows.count - 1);
          const vec scale = pair(rows.value_scales[i], rows.value_scales[second]);
          cpu::store(weights, to_float(weights) * scale);
        }
      for (int d = 0; d < head_dim_; d += 2 * kLanes) {
        fetch(kKeys / 2 + (d + 2 * kLanes) * kKeys / 2 / head_dim_);
        if (d + kLanes < head_dim_)
          add_values<C, 2>(panel, d);
        else
          add_values<C, 1>(panel, d);
      }
    });
  }

  static int stream() { return 0; }
  static void begin() {}  // sums go on from chunk to chunk
  static void settle(int, bool) {}

  struct Output {
    const float* column;
    int head_dim;
    static bool leader() { return true; }
    template <class D>
    void store(D* p, float scale) const {
      for (int d = 0; d < head_dim; d += kLanes)
        cpu::store(p + d, scale == 0 ? vec{} : to_float(column + d) * scale);
    }
  };

  template <class F>
  void close(F f) {
    for (int p = 0; p < panels_; ++p) {
      const Panel& panel = panel_[p];
      for (int c = 0; c < panel.count; ++c)
        f(panel.x[c], panel.top[c], panel.sum[c] + panel.sum[c + kColumns],
          Output{panel.output + c * head_dim_, head_dim_});
    }
  }

 private:
  struct Rows {
    Codes codes = Codes::kNone;  // what the pointers are to, if not to T
    const T *keys[kKeys], *values[kKeys];
    float key_scales[kKeys], value_scales[kKeys];
    int count = 0;
  };
  // f with a pointer of the type of the rows' elements.
  template <class F>
  static void by_type(const Rows& rows, F f) {
    if (rows.codes == Codes::kFn) return f(static_cast<const e4m3fn*>(nullptr));
    if (rows.codes == Codes::kFnuz) return f(static_cast<const e4m3fnuz*>(nullptr));
    f(static_cast<const T*>(nullptr));
  }
  template <class C>
  static const C* as(const T* row) {
    return reinterpret_cast<const C*>(row);
  }
  static vec pair(float a, float b) { return vec{a, a, a, a, b, b, b, b}; }

  // The scores of two keys.
  template <class C>
  __attribute__((always_inline)) void dots(const C* first, const C* second, const float* queries,
                                           float* out) const {
    vec a[kColumns] = {}, b[kColumns] = {};
    for (int d = 0; d < head_dim_; d += kLanes, queries += kColumns * kLanes) {
      const vec x = to_float(first + d), y = to_float(second + d);
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) {
        const vec query = to_float(queries + c * kLanes);
        a[c] += x * query;
        b[c] += y * query;
      }
    }
    const four one = sums_of(a[0], a[1], a[2], a[3]), other = sums_of(b[0], b[1], b[2], b[3]);
    std::memcpy(out, &one, sizeof one);
    std::memcpy(out + kColumns, &other, sizeof other);
  }

  void hide(int key) { std::fill_n(scores_ + key * kColumns, kColumns, -INFINITY); }

  // Scores become weights; the columns' maxima and sums move on, and the outputs shrink. A vector
  // has two keys of all columns.
  void weigh(Panel& panel) {
    const int n = rows_[staged_].count * kColumns;
    vec top = panel.top;
    for (int i = 0; i < n; i += kLanes) top = maximum(top, to_float(scores_ + i));
    vec turned;
    for (int j = 0; j < kLanes; ++j) turned[j] = top[(j + kColumns) % kLanes];
    top = maximum(top, turned);
    const vec base = top == splat(-INFINITY) ? vec{} : top;  // as finite_or_zero
    vec sum{};
    for (int i = 0; i < n; i += kLanes) {
      const vec weight = power(to_float(scores_ + i) - base);
      cpu::store(scores_ + i, weight);
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

  // Adds the weighted values of kVectors * kLanes channels from d on.
  template <class C, int kVectors>
  __attribute__((noinline)) void add_values(const Panel& panel, int d) const {
    const Rows& rows = rows_[staged_];
    float* const output = panel.output;
    const int64_t first = panel.apart.values + d;
    vec sums[kColumns][kVectors];
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v)
        sums[c][v] = to_float(output + c * head_dim_ + d + v * kLanes);
    for (int i = 0; i < rows.count; ++i) {
      vec value[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v)
        value[v] = to_float(as<C>(rows.values[i]) + first + v * kLanes);
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
        cpu::store(output + c * head_dim_ + d + v * kLanes, sums[c][v]);
  }

  // Prefetches the next tile, up to row `end` if this panel were the only one, into the L2: it is
  // larger than the L1.
  void fetch(int end) {
    const Rows& ahead = rows_[1 - staged_];
    end = (turn_ * kKeys + least(end, kKeys)) / panels_;
    const int size = ahead.codes == Codes::kNone ? sizeof(T) : 1;
    for (end = least(end, ahead.count); fetched_ < end; ++fetched_)
      for (int head = 0; head < heads; ++head) {
        const T* key = ahead.keys[fetched_] + head * apart_.keys;
        const T* value = ahead.values[fetched_] + head * apart_.values;
        for (int byte = 0; byte < head_dim_ * size; byte += 64) {
          __builtin_prefetch(reinterpret_cast<const char*>(key) + byte, 0, 2);
          __builtin_prefetch(reinterpret_cast<const char*>(value) + byte, 0, 2);
        }
      }
  }

  float* memory_;
  int head_dim_, panels_ = 0, turn_ = 0, staged_ = 0, fetched_ = 0, places_[kKeys];
  Apart apart_;
  Rows rows_[2];
  Panel panel_[kGroupColumns / kColumns];
  alignas(64) float scores_[(kKeys + 1) * kColumns];
};

static_assert(AttentionTarget<NarrowTile<float, int>, float, int>);

}  // namespace blockdraft::cpu
