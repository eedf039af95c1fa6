// The attention tile of sim: plain loops on staged memory that starts as NaN. Operands and P are
// rounded to T, as on a GPU.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>
#include <vector>

#include "tile/attention.h"
#include "tile/sim/group.h"

namespace blockdraft::sim {

constexpr int kColumns = 8;

// What the waves of a group share.
template <int kBuffers, int kKeys>
struct Shared {
  int head_dim;
  std::vector<float> keys[kBuffers], values[kBuffers];
  explicit Shared(int head_dim) : head_dim(head_dim) {
    for (auto* operand : {keys, values})
      for (int b = 0; b < kBuffers; ++b) operand[b].assign(kKeys * head_dim, NAN);
  }
};

template <class T, class X, int kBuffersOfTile = 2>
class Tile : public Group {
 public:
  static constexpr int kKeys = 16, kBuffers = kBuffersOfTile, kGroupColumns = kWaves * kColumns;
  static constexpr int kStreams = 1;
  static constexpr bool kReadsCodes = false;
  using Memory = Shared<kBuffers, kKeys>;

  struct Panel {
    int count = 0;
    X x[kColumns];
    std::vector<float> queries, output;  // [kColumns][head_dim]
    float scores[kKeys][kColumns], top[kColumns], sum[kColumns];

    template <class F>
    bool any(F f) const {
      return std::any_of(x, x + count, f);
    }
  };

  Tile(const Wave& wave, Memory& memory) : Group(wave), memory_(memory), dim_(memory.head_dim) {}

  template <class Describe, class Query>
  void open(int n, Describe x, Query query, float scale) {
    scale_ = scale;
    panel_.count = std::clamp(n - wave_ * kColumns, 0, kColumns);
    panel_.queries.assign(kColumns * dim_, 0);
    for (int c = 0; c < kColumns; ++c) {
      if (c >= panel_.count) continue;
      panel_.x[c] = x(wave_ * kColumns + c);
      if (const T* src = query(panel_.x[c]))
        for (int d = 0; d < dim_; ++d) panel_.queries[c * dim_ + d] = value(src[d]);
    }
  }

  void begin() {
    panel_.output.assign(kColumns * dim_, 0);
    std::fill_n(panel_.top, kColumns, -INFINITY);
    std::fill_n(panel_.sum, kColumns, 0.0f);
  }

  template <class Place>
  void locate(Place place, int n) {
    places_.assign(n, 0);
    for (int i = wave_; i < n; i += kWaves) places_[i] = place(i);
  }

  template <class Key, class Value>
  void load(Key key, Value value, int n) {
    loaded_.assign(n, {});
    for (int i = wave_; i < n; i += kWaves) loaded_[i] = {key(places_[i], i), value(places_[i], i)};
  }

  void deposit(int n) {
    buffer_ = (buffer_ + 1) % kBuffers;
    staged_ = n;
    for (int i = wave_; i < staged_; i += kWaves)
      for (int d = 0; d < dim_; ++d) {
        memory_.keys[buffer_][i * dim_ + d] = value(loaded_[i].first[d]);
        memory_.values[buffer_][i * dim_ + d] = value(loaded_[i].second[d]);
      }
  }

  template <class F>
  void each_panel(F f) {
    if (panel_.count) f(panel_);
  }

  void scores(Panel& panel) const {
    for (int i = 0; i < kKeys; ++i)
      for (int c = 0; c < kColumns; ++c) {
        float sum = 0;
        for (int d = 0; d < dim_; ++d)
          sum += memory_.keys[buffer_][i * dim_ + d] * panel.queries[c * dim_ + d];
        panel.scores[i][c] = i < staged_ ? sum * scale_ : -INFINITY;
      }
  }

  template <class Visible>
  void mask(Panel& panel, Visible visible) const {
    for (int c = 0; c < panel.count; ++c) {
      const auto seen = visible(panel.x[c]);
      for (int i = 0; i < kKeys; ++i)
        if (i < seen.from || i >= seen.to) panel.scores[i][c] = -INFINITY;
    }
  }

  void absorb(Panel& panel) const {
    for (int c = 0; c < kColumns; ++c) {
      float top = panel.top[c], sum = 0;
      for (int i = 0; i < kKeys; ++i) top = std::fmax(top, panel.scores[i][c]);
      const float base = finite_or_zero(top);
      const float shrink = std::exp2(panel.top[c] - base);
      float* output = panel.output.data() + c * dim_;
      for (int d = 0; d < dim_; ++d) output[d] *= shrink;
      for (int i = 0; i < staged_; ++i) {
        const float p = std::exp2(panel.scores[i][c] - base);
        sum += p;
        for (int d = 0; d < dim_; ++d)
          output[d] += rounded<T>(p) * memory_.values[buffer_][i * dim_ + d];
      }
      panel.top[c] = top;
      panel.sum[c] = panel.sum[c] * shrink + sum;
    }
  }

  static int stream() { return 0; }

  void settle(int chunk, bool last) {
    Node now{panel_.output, {}, {}};
    std::copy_n(panel_.top, kColumns, now.top);
    std::copy_n(panel_.sum, kColumns, now.sum);
    for (int level = 0; chunk >> level; ++level) {
      if (chunk >> level & 1) {
        now = join(nodes_[level], now);
      } else if (!last) {
        break;
      }
    }
    if (last) {
      panel_.output = now.output;
      std::copy_n(now.top, kColumns, panel_.top);
      std::copy_n(now.sum, kColumns, panel_.sum);
      return;
    }
    const int level = std::countr_one(unsigned(chunk));
    nodes_.resize(std::max<size_t>(nodes_.size(), level + 1));
    nodes_[level] = now;
  }

  struct Output {
    const float* column;
    int dim;
    static bool leader() { return true; }
    template <class D>
    void store(D* p, float scale) const {
      for (int d = 0; d < dim; ++d) cpu::from_float(p + d, scale == 0 ? 0.0f : scale * column[d]);
    }
  };

  template <class F>
  void close(F f) const {
    for (int c = 0; c < panel_.count; ++c)
      f(panel_.x[c], panel_.top[c], panel_.sum[c], Output{panel_.output.data() + c * dim_, dim_});
  }

 private:
  struct Node {
    std::vector<float> output;
    float top[kColumns], sum[kColumns];
  };

  Node join(const Node& left, Node right) const {
    for (int c = 0; c < kColumns; ++c) {
      const AttentionJoin both(left.top[c], right.top[c]);
      right.top[c] = both.top;
      right.sum[c] = both(left.sum[c], right.sum[c]);
      for (int d = c * dim_; d < (c + 1) * dim_; ++d)
        right.output[d] = both(left.output[d], right.output[d]);
    }
    return right;
  }

  Memory& memory_;
  std::vector<Node> nodes_;  // the tree's complete nodes, by level
  int dim_, buffer_ = 0, staged_ = 0;
  float scale_ = 0;
  Panel panel_;
  std::vector<int> places_;
  std::vector<std::pair<const T*, const T*>> loaded_;
};

static_assert(AttentionTarget<Tile<float, int>, float, int>);

}  // namespace blockdraft::sim
