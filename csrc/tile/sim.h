// The tile layer for tests: a group of four waves, run one at a time, in another random order after
// every barrier, on staged memory that starts as NaN. A wave that reads what another has not yet
// written, or already overwritten, computes a wrong result under some seed. Plain loops; operands
// and P are rounded to T, as on a GPU.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "host.h"

namespace blockdraft::sim {

constexpr int kWaves = 4;

class Scheduler {
 public:
  // `dropped`: this barrier (counted by each wave from 0) is left out; -1: none.
  Scheduler(uint64_t seed, int dropped) : random_(seed), dropped_(dropped) {}

  template <class Body>
  void run(Body body) {
    begin_phase();
    std::vector<std::thread> threads;
    for (int wave = 0; wave < kWaves; ++wave)
      threads.emplace_back([&, wave] {
        wait_for_turn(wave);
        body(wave);
        pass(wave, true);
      });
    for (auto& thread : threads) thread.join();
  }

  void barrier(int wave) {
    if (passed_[wave]++ == dropped_) return;
    pass(wave, false);
    wait_for_turn(wave);
  }

 private:
  void begin_phase() {
    std::iota(order_, order_ + kWaves, 0);
    std::shuffle(order_, order_ + kWaves, random_);
    turn_ = 0;
  }

  void wait_for_turn(int wave) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return order_[turn_] == wave; });
  }

  // The wave is at a barrier, or at its end; every wave must reach the same.
  void pass(int wave, bool ends) {
    std::lock_guard lock(mutex_);
    if (turn_ == 0) ending_ = ends;
    if (ending_ != ends)
      std::fprintf(stderr, "sim: wave %d passes a barrier that others do not\n", wave),
          std::abort();
    if (++turn_ == kWaves) {
      if (ends) return;
      begin_phase();
    }
    changed_.notify_all();
  }

  std::mt19937_64 random_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int order_[kWaves], turn_ = 0, passed_[kWaves] = {}, dropped_;
  bool ending_ = false;
};

class Group {
 public:
  Group(Scheduler& scheduler, int wave) : scheduler_(scheduler), wave_(wave) {}

  template <class F>
  void each(int n, F f) const {
    for (int i = wave_; i < n; i += kWaves) f(i);
  }
  template <class F>
  void each(int m, int n, F f) const {
    each(m * n, [&](int i) { f(i / n, i % n); });
  }
  template <class Weight, class Term, class F>
  void combine(int n, int terms, Weight weight, Term term, F f) const {
    each(n, [&](int i) { f(i, weighted_sum(i, terms, weight, term)); });
  }
  bool leader() const { return wave_ == 0; }
  void barrier() const { scheduler_.barrier(wave_); }
  static int uniform(int x) { return x; }
  template <class T>
  static void store(T* p, float x) {
    host::from_float(p, x);
  }

 protected:
  Scheduler& scheduler_;
  int wave_;
};

inline float value(float x) { return x; }
inline float value(bf16 x) { return std::bit_cast<float>(uint32_t(x.bits) << 16); }
inline float value(fp16 x) {
  fp16 eight[host::kLanes] = {x};
  return host::to_float(eight)[0];
}
template <class T>
float rounded(float x) {
  T t;
  host::from_float(&t, x);
  return value(t);
}

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

  Tile(Scheduler& scheduler, int wave, Memory& memory)
      : Group(scheduler, wave), memory_(memory), dim_(memory.head_dim) {}

  template <class Describe, class Query>
  void open(int n, Describe x, Query query, float scale) {
    scale_ = scale;
    panel_.count = std::clamp(n - wave_ * kColumns, 0, kColumns);
    panel_.queries.assign(kColumns * dim_, 0), panel_.output.assign(kColumns * dim_, 0);
    for (int c = 0; c < kColumns; ++c) {
      panel_.top[c] = kLowest, panel_.sum[c] = 0;
      if (c >= panel_.count) continue;
      panel_.x[c] = x(wave_ * kColumns + c);
      if (const T* src = query(panel_.x[c]))
        for (int d = 0; d < dim_; ++d) panel_.queries[c * dim_ + d] = value(src[d]);
    }
  }

  template <class Place>
  void locate(Place place, int n) {
    places_.assign(n, 0);
    for (int i = wave_; i < n; i += kWaves)
      places_[i] = place(i);  // a wave stages its share of the rows
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

  template <class F>
  void each_score(const Panel& panel, F f) const {
    for (int i = 0; i < staged_; ++i)
      for (int c = 0; c < panel.count; ++c) f(i, panel.x[c], panel.scores[i][c]);
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
      const float shrink = std::exp2(panel.top[c] - top);
      float* output = panel.output.data() + c * dim_;
      for (int d = 0; d < dim_; ++d) output[d] *= shrink;
      for (int i = 0; i < staged_; ++i) {
        const float p = std::exp2(panel.scores[i][c] - top);
        sum += p;
        for (int d = 0; d < dim_; ++d)
          output[d] += rounded<T>(p) * memory_.values[buffer_][i * dim_ + d];
      }
      panel.top[c] = top;
      panel.sum[c] = panel.sum[c] * shrink + sum;
    }
  }

  struct Output {
    const float* column;
    int dim;
    static bool leader() { return true; }
    template <class D>
    void store(D* p, float scale) const {
      for (int d = 0; d < dim; ++d) host::from_float(p + d, scale == 0 ? 0.0f : scale * column[d]);
    }
  };

  template <class F>
  void close(F f) const {
    for (int c = 0; c < panel_.count; ++c)
      f(panel_.x[c], panel_.top[c], panel_.sum[c], Output{panel_.output.data() + c * dim_, dim_});
  }

 private:
  Memory& memory_;
  int dim_, buffer_ = 0, staged_ = 0;
  float scale_ = 0;
  Panel panel_;
  std::vector<int> places_;
  std::vector<std::pair<const T*, const T*>> loaded_;
};

// Runs body(Tile&) as every wave of a group.
template <class Tile, class Body>
void run_tile(uint64_t seed, int dropped_barrier, int head_dim, Body body) {
  Scheduler scheduler(seed, dropped_barrier);
  typename Tile::Memory memory(head_dim);
  scheduler.run([&](int wave) {
    Tile tile(scheduler, wave, memory);
    body(tile);
  });
}

}  // namespace blockdraft::sim
