// The attention tile of a CPU: one wave. Its operands are staged in the order in which the products
// read them, in fp32, or in bf16 if the CPU has a matrix unit or bf16 dot products.
#pragma once

#include <cmath>
#include <vector>

#include "tile/attention.h"
#include "tile/cpu/group.h"
#include "tile/cpu/matrix_attention.h"
#include "tile/cpu/micro.h"

namespace blockdraft::cpu {

// What a panel's columns are.
template <class X, int kMost>
struct Columns {
  int count;
  X x[kMost];

  template <class F>
  bool any(F f) const {
    for (int c = 0; c < count; ++c)
      if (f(x[c])) return true;
    return false;
  }
};

// What rows of a cache hold instead of a tile's own elements; kNumbers: codes, none of them NaN.
enum class Codes { kNone, kFn, kFnuz, kNumbers };

// How a tile multiplies: fp32; bf16 as on a GPU, by dot products (if has_dots()) or by the matrix
// unit (if has_matrix_unit() and 32 divides the head dim).
enum class Products { kFloat, kDots, kMatrix };

template <class T, class X, Products kProducts = Products::kFloat>
class Tile : public Group {
  static constexpr bool kPairs = kProducts != Products::kFloat;  // of bf16
  typedef MatrixAttention<T> Matrix;

 public:
  static constexpr bool kMatrix = kProducts == Products::kMatrix;
  // With AVX-512 fp32 operands of 128 keys stay in the L2 beside those of 32 columns.
  static constexpr bool kWidePanels = !kPairs && kWide == 16;
  static constexpr int kKeys = kWidePanels ? 128 : 192, kBuffers = 1, kStreams = 1;
  static constexpr int kColumns = kWidePanels ? 32 : 16;  // of a panel
  // Floats. With a power of two between rows, a column of values would map to few cache sets.
  static constexpr int kValuePad = 16;
  // 136 rows in a GQA group of 4: their operands stay in the L2.
  static constexpr int kGroupColumns = 544;
  static constexpr bool kReadsCodes = kProducts != Products::kDots;

  struct Panel : Columns<X, kColumns> {
    float* queries;  // [head_dim][kColumns], scaled; or pairs [head_dim / 2][kColumns], not scaled
    float* output;   // [head_dim][kColumns]
    float* running;  // maximum [kColumns], sum [kColumns]
  };

  // The floats that `memory` of the constructor needs, aligned to a cache line.
  static int64_t floats(int columns, int head_dim) {
    return int64_t(kKeys) * (2 * head_dim + kValuePad + kColumns) +
           int64_t(ceil_div(columns, kColumns)) * (2 * head_dim + 2) * kColumns;
  }
  Tile(float* memory, int head_dim) : head_dim_(head_dim) {
    keys_ = memory;
    values_ = keys_ + kKeys * head_dim;
    scores_ = values_ + kKeys * (head_dim + kValuePad);
    columns_ = scores_ + kKeys * kColumns;
  }

  template <class Describe, class Query>
  void open(int n, Describe x, Query query, float scale) {
    scale_ = scale;
    panels_.resize(ceil_div(n, kColumns));
    for (int p = 0; p < int(panels_.size()); ++p) {
      Panel& panel = panels_[p];
      panel.queries = columns_ + int64_t(p) * (2 * head_dim_ + 2) * kColumns;
      panel.output = panel.queries + head_dim_ * kColumns;
      panel.running = panel.output + head_dim_ * kColumns;
      panel.count = least(n - p * kColumns, kColumns);
      std::memset(panel.output, 0, sizeof(float) * head_dim_ * kColumns);
      for (int c = 0; c < kColumns; ++c) {
        panel.running[c] = -INFINITY;
        panel.running[kColumns + c] = 0;
        if (c < panel.count) panel.x[c] = x(p * kColumns + c);
        stage_query(panel, c, c < panel.count ? query(panel.x[c]) : nullptr);
      }
    }
  }

  template <class Place>
  void locate(Place place, int n) {
    for (int i = 0; i < n; ++i) places_[i] = place(i);
  }

  template <class Key, class Value>
  void load(Key key, Value value, int n) {
    // deposit reads these rows; until then fetch_some prefetches them during the products.
    loaded_ = n;
    codes_ = Codes::kNone;
    for (int i = 0; i < n; ++i) {
      key_rows_[i] = key(places_[i], i);
      value_rows_[i] = value(places_[i], i);
    }
  }

  template <class Key, class Value>
  void load_codes(bool fnuz, Key key, Value value, int n) {
    loaded_ = n;
    codes_ = fnuz ? Codes::kFnuz : Codes::kFn;
    for (int i = 0; i < n; ++i) {
      const CodedRow k = key(places_[i], i), v = value(places_[i], i);
      key_rows_[i] = reinterpret_cast<const T*>(k.codes);
      value_rows_[i] = reinterpret_cast<const T*>(v.codes);
      key_scales_[i] = *k.scale;
      value_scales_[i] = *v.scale;
    }
  }

  void deposit(int n) {
    staged_ = n;
    if constexpr (kMatrix) {
      coded_ = codes_ != Codes::kNone;
      if (codes_ == Codes::kFn)
        decode<e4m3fn>();
      else if (codes_ == Codes::kFnuz)
        decode<e4m3fnuz>();
      else
        stage_keys();
      Matrix::transpose(value_rows_, staged_, head_dim_, kKeys, reinterpret_cast<T*>(values_));
    } else if constexpr (kPairs) {
      stage_keys();
      stage_values();
    } else {
      stage(keys_, head_dim_, key_rows_, key_scales_);
      stage(values_, head_dim_ + kValuePad, value_rows_, value_scales_);
    }
  }

  template <class F>
  void each_panel(F f) {
    fetched_ = due_ = 0;
    pace_ = float(loaded_) /
            (int(panels_.size()) * (staged_ / kBlockRows + head_dim_ / kBlockRows + 2));
    if constexpr (kMatrix) Matrix::open();
    for (Panel& panel : panels_) f(panel);
    if constexpr (kMatrix) Matrix::close();
    fetch(loaded_);
  }

  void scores(const Panel& panel) {
    if constexpr (kMatrix) {
      multiply(keys_, head_dim_, staged_, head_dim_, panel.queries, scores_, false);
      for (int i = 0; i < staged_; ++i) {
        const float scale = coded() ? scale_ * staged_key_scales_[i] : scale_;
        float* row = scores_ + i * kColumns;
        for (int c = 0; c < kColumns; c += kWide) store_wide(row + c, load_wide(row + c) * scale);
      }
    } else if constexpr (kPairs)
      dot_product<false>(pairs(keys_), head_dim_ / 2, 1, pairs(panel.queries), scores_, staged_,
                         head_dim_ / 2, scale_, [&] { fetch_some(); });
    else
      multiply<false>(panel, keys_, head_dim_, 1, panel.queries, scores_, staged_, head_dim_);
  }

  template <class Visible>
  void mask(const Panel& panel, Visible visible) {
    for (int c = 0; c < panel.count; ++c) {
      const auto seen = visible(panel.x[c]);
      for (int i = 0; i < staged_; ++i)
        if (i < seen.from || i >= seen.to) scores_[i * kColumns + c] = -INFINITY;
    }
  }

  void absorb(Panel& panel) {
    for (int part = 0; part < panel.count; part += kWide) weigh(panel, part);
    const int n = staged_, dim = head_dim_;
    if constexpr (kMatrix) {
      const int pairs = ceil_div(n, 2), padded = ceil_div(n, 32) * 16;
      std::fill(scores_ + pairs * kColumns, scores_ + padded * kColumns, 0.0f);
      multiply(values_, kKeys, dim, n, scores_, panel.output, true);
    } else if constexpr (kPairs)
      dot_product<true>(pairs(values_), 1, dim + kValuePad, pairs(scores_), panel.output, dim,
                        ceil_div(n, 2), 1.0f, [&] { fetch_some(); });
    else
      multiply<true>(panel, values_, 1, dim + kValuePad, scores_, panel.output, dim, n);
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
      for (int d = 0; d < head_dim; ++d)
        from_float(p + d, scale == 0 ? 0.0f : scale * column[d * kColumns]);
    }
  };

  template <class F>
  void close(F f) {
    for (const Panel& panel : panels_)
      for (int c = 0; c < panel.count; ++c)
        f(panel.x[c], panel.running[c], panel.running[kColumns + c],
          Output{panel.output + c, head_dim_});
  }

 private:
  bool coded() const { return kMatrix && coded_; }

  // Turns the scores of kWide columns from `part` on into softmax weights, updates the maxima and
  // sums of the columns and rescales their outputs.
  void weigh(Panel& panel, int part) {
    const int n = staged_;
    float* const column = scores_ + part;
    float* const running = panel.running + part;
    const wide before = load_wide(running);
    wide top = before;  // two maxima and two sums, so that the dependency chains are shorter
    wide other = before;
    int i = 0;
    for (; i + 1 < n; i += 2) {
      top = maximum_wide(top, load_wide(column + i * kColumns));
      other = maximum_wide(other, load_wide(column + (i + 1) * kColumns));
    }
    if (i < n) top = maximum_wide(top, load_wide(column + i * kColumns));
    top = maximum_wide(top, other);
    const wide base = top == splat_wide(-INFINITY) ? wide{} : top;  // as finite_or_zero
    wide sum{};
    wide odd{};
    for (i = 0; i + 1 < n; i += 2) {
      const wide p = cpu::exp2(load_wide(column + i * kColumns) - base);
      const wide q = cpu::exp2(load_wide(column + (i + 1) * kColumns) - base);
      keep(column, i, p, q);
      sum += p;
      odd += q;
    }
    if (i < n) {
      const wide p = cpu::exp2(load_wide(column + i * kColumns) - base);
      keep(column, i, p, wide{});
      sum += p;
    }
    const wide shrink = cpu::exp2(before - base);
    store_wide(running, top);
    store_wide(running + kColumns, load_wide(running + kColumns) * shrink + (sum + odd));
    const iwide changed = before < top;
    bool grown = false;
    for (int j = 0; j < kWide; ++j) grown |= changed[j] != 0;
    if (!grown) return;
    for (int d = 0; d < head_dim_; ++d) {
      float* o = panel.output + d * kColumns + part;
      store_wide(o, load_wide(o) * shrink);
    }
  }

  static constexpr int kBlockRows = kMatrix ? 32 : kPairs ? 12 : kMicroRows;
  static const Pair* pairs(const float* p) { return reinterpret_cast<const Pair*>(p); }

  // Stores the weights of keys i and i + 1 in place of their scores or, with kPairs, as a bf16 pair
  // in row i / 2.
  void keep(float* column, int i, wide p, wide q) const {
    if constexpr (kPairs) {
      if (coded()) {
        p *= staged_value_scales_[i];
        q *= staged_value_scales_[i + 1];
      }
      const uwide pair = (((uwide)p + 0x8000u) >> 16) | (((uwide)q + 0x8000u) & 0xffff0000u);
      store_wide(column + i / 2 * kColumns, (wide)pair);
    } else {
      store_wide(column + i * kColumns, p);
      store_wide(column + (i + 1) * kColumns, q);
    }
  }

  // A product of fp32, of no more vectors of columns than the panel needs.
  template <bool kAccumulate>
  void multiply(const Panel& panel, const float* a, int64_t row, int64_t step, const float* b,
                float* out, int rows, int depth) {
    auto by = [&]<int kVectors>() {
      product<kAccumulate, kColumns, kVectors>(a, row, step, b, out, rows, depth,
                                               [&] { fetch_some(); });
    };
    if (panel.count <= kColumns / 2)
      by.template operator()<kColumns / kWide / 2>();
    else
      by.template operator()<kColumns / kWide>();
  }

  // out[rows][kColumns] (+)= a[rows][depth] b[depth][kColumns]; a and b are of bf16.
  void multiply(const float* a, int stride, int rows, int depth, const float* b, float* out,
                bool add) {
    Matrix::multiply(reinterpret_cast<const T*>(a), stride, rows, depth,
                     reinterpret_cast<const T*>(b), out, add, [&] { fetch_some(); });
  }

  // Codes become numbers, keys as the products read them, values behind those that will be
  // transposed; their scales are applied to products.
  template <class C>
  void decode() {
    T* keys = reinterpret_cast<T*>(keys_);
    T* values = reinterpret_cast<T*>(values_) + int64_t(kKeys) * head_dim_;
    for (int i = 0; i < staged_; ++i, keys += head_dim_, values += head_dim_) {
      if (i + 12 < staged_) {
        prefetch<3>(key_rows_[i + 12]);
        prefetch<3>(value_rows_[i + 12]);
      }
      Matrix::decode(reinterpret_cast<const C*>(key_rows_[i]), head_dim_, keys);
      Matrix::decode(reinterpret_cast<const C*>(value_rows_[i]), head_dim_, values);
      value_rows_[i] = values;
    }
    std::copy_n(key_scales_, staged_, staged_key_scales_);
    std::copy_n(value_scales_, staged_, staged_value_scales_);
    if (staged_ % 2) staged_value_scales_[staged_] = 0;  // of no key
  }

  void stage_keys() const {
    for (int i = 0; i < staged_; ++i) {
      if (i + 12 < staged_) prefetch<3>(key_rows_[i + 12]);
      std::memcpy(keys_ + i * (head_dim_ / 2), key_rows_[i], head_dim_ * sizeof(T));
    }
  }
  // Each Pair holds the values of two keys, or of the last key and zero.
  void stage_values() const {
    for (int i = 0; i < staged_; i += 2) {
      if (i + 13 < staged_) prefetch<3>(value_rows_[i + 12]), prefetch<3>(value_rows_[i + 13]);
      for (int d = 0; d < head_dim_; d += kLanes) {
        const uvec low = widen(&value_rows_[i][d].bits),
                   high = i + 1 < staged_ ? widen(&value_rows_[i + 1][d].bits) << 16 : uvec{};
        cpu::store(values_ + i / 2 * (head_dim_ + kValuePad) + d, (vec)(low | high));
      }
    }
  }
  void stage(float* operand, int stride, const T* const* rows, const float* scales) const {
    if (codes_ == Codes::kFn) return stage_codes<e4m3fn>(operand, stride, rows, scales);
    if (codes_ == Codes::kFnuz) return stage_codes<e4m3fnuz>(operand, stride, rows, scales);
    const int dim = head_dim_, n = staged_;
    for (int i = 0; i < n; ++i) {
      const T* src = rows[i];
      if (i + 4 < n) prefetch<3>(rows[i + 4]);
      for (int d = 0; d < dim; d += kLanes) cpu::store(operand + i * stride + d, to_float(src + d));
    }
  }

  template <class C>
  void stage_codes(float* operand, int stride, const T* const* rows, const float* scales) const {
    for (int i = 0; i < staged_; ++i) {
      const C* codes = reinterpret_cast<const C*>(rows[i]);
      if (i + 4 < staged_) prefetch<3>(rows[i + 4]);
      for (int d = 0; d < head_dim_; d += kLanes)
        cpu::store(operand + i * stride + d, to_float(codes + d) * scales[i]);
    }
  }

  void stage_query(const Panel& panel, int c, const T* src) const {
    if constexpr (kPairs) {
      for (int d = 0; d < head_dim_; d += 2) {
        float& pair = panel.queries[d / 2 * kColumns + c];
        if (src)
          std::memcpy(&pair, src + d, sizeof pair);
        else
          pair = 0;
      }
      return;
    }
    for (int d = 0; d < head_dim_; d += kLanes) {
      const vec x = src ? to_float(src + d) * scale_ : vec{};
      for (int j = 0; j < kLanes; ++j) panel.queries[(d + j) * kColumns + c] = x[j];
    }
  }

  // Prefetches a few rows between micro-kernels, because a CPU stalls on many prefetches at once.
  void fetch_some() { fetch(due_ += pace_); }
  void fetch(float rows) {
    for (; fetched_ < rows && fetched_ < loaded_; ++fetched_) {
      prefetch<2>(key_rows_[fetched_]);
      prefetch<2>(value_rows_[fetched_]);
    }
  }

  template <int kLocality>  // 3: into the L1, 2: the L2
  [[gnu::always_inline]] void prefetch(const T* row) const {
    const int size = codes_ == Codes::kNone ? sizeof(T) : 1;
    for (int byte = 0; byte < head_dim_ * size; byte += 64)
      __builtin_prefetch(reinterpret_cast<const char*>(row) + byte, 0, kLocality);
  }

  float *keys_, *values_, *scores_, *columns_;
  int head_dim_, loaded_ = 0, staged_ = 0, fetched_ = 0, places_[kKeys];
  float due_ = 0, pace_ = 0, scale_ = 1;
  Codes codes_ = Codes::kNone;  // of the loaded rows
  const T *key_rows_[kKeys], *value_rows_[kKeys];
  float key_scales_[kKeys], value_scales_[kKeys];
  bool coded_ = false;  // the staged tile, of which these are the scales
  float staged_key_scales_[kKeys], staged_value_scales_[kKeys];
  std::vector<Panel> panels_;
};

static_assert(AttentionTarget<Tile<float, int>, float, int>);

// Calls f(std::type_identity<Tile>()) with the fastest tile of this CPU. `codes`: one that reads
// them.
template <class T, class X, class F>
void with_tile_type(F f, [[maybe_unused]] int head_dim, [[maybe_unused]] bool codes = false) {
#ifdef __AVX512F__
  if constexpr (std::is_same_v<T, bf16>) {
    if (has_matrix_unit() && head_dim % 32 == 0)
      return f(std::type_identity<Tile<T, X, Products::kMatrix>>());
    if (has_dots() && !codes) return f(std::type_identity<Tile<T, X, Products::kDots>>());
  }
#endif
  f(std::type_identity<Tile<T, X>>());
}

}  // namespace blockdraft::cpu
