// ZAYA's router: the kernel bodies, written against the tile layer.
#pragma once

#include "ops/zaya_router/schedule.h"
#include "tile/gemm.h"

namespace blockdraft {

// state = down_weight hidden + down_bias + prev_state * eda_scale: the tile `id` of `rows` channels.
template <class Gemm, class T>
void project(Gemm& gemm, const ZayaRouterParams<T>& p, int64_t id, int rows) {
  const int tiles = ceil_div(p.channels, rows);
  const int first = int(id % tiles) * rows;
  const int row = int(id / tiles) * Gemm::kGroupColumns;
  gemm.multiply(
      least(p.channels - first, rows), least(p.rows - row, Gemm::kGroupColumns), p.hidden_size,
      [&](int i) { return p.down_weight.at(first + i); },
      [&](int c) { return p.hidden.at(row + c); },
      [&](int i, int c, auto y) {
        const int channel = first + i, count = p.channels - channel;
        y += Gemm::values(p.down_bias + channel, count);
        if (p.prev_state)
          y += Gemm::values(p.prev_state.at(row + c) + channel, count) *
               Gemm::values(p.eda_scale + channel, count);
        Gemm::store(p.state.at(row + c) + channel, y, count);
      });
}

// x (1 + erf(x / sqrt 2)) / 2, where 1 - erf is Abramowitz and Stegun's 7.1.26, to 1.5e-7.
template <class Group, class Sums>
Sums gelu(Sums x) {
  const Sums size = x < 0 ? -x : x;
  const Sums t = 1 / (1 + 0.3275911f * 0.707106781f * size);
  Sums tail = 1.061405429f * t - 1.453152027f;
  tail = tail * t + 1.421413741f;
  tail = tail * t - 0.284496736f;
  tail = tail * t + 0.254829592f;
  tail *= t * Group::exp2(-0.5f * float(kLog2e) * x * x);
  return (x < 0 ? Sums{} : x) - 0.5f * size * tail;
}

// The activations y of `count` tokens, from x, both in the group's memory. Without a bias, there is
// no GELU either.
template <class Gemm, class T>
void layer(Gemm& gemm, const ZayaRouterParams<T>& p, const View<const T, 1>& weight, const T* bias,
           int channels, int count, const float* x, float* y) {
  const int stride = p.stride();
  for (int first = 0; first < channels; first += Gemm::kRows) {
    gemm.multiply(
        least(channels - first, Gemm::kRows), count, p.channels,
        [&](int i) { return weight.at(first + i); }, [&](int c) { return x + c * stride; },
        [&](int i, int c, auto sum) {
          const int channel = first + i, left = channels - channel;
          if (bias) sum = gelu<Gemm>(sum + Gemm::values(bias + channel, left));
          Gemm::store(y + c * stride + channel, sum, left);
        });
    gemm.barrier();
  }
}

struct RouterChoice {
  float score;
  int index;
};

// The order of choices: greater scores first, then lower indices.
inline bool precedes(RouterChoice a, RouterChoice b) {
  return a.score > b.score || (a.score == b.score && a.index < b.index);
}
inline RouterChoice either(bool first, RouterChoice a, RouterChoice b) {
  return {first ? a.score : b.score, first ? a.index : b.index};
}

// The weights and experts of a row, from its logits. `powers`: memory for as many.
template <class Group, class Wave, class T>
void choose(const ZayaRouterParams<T>& p, const Wave& wave, int row, const float* logits,
            float* powers) {
  const float least_float = -__builtin_inff();
  const float top = wave.fold(
      p.classes, least_float, [&](int i) { return logits[i]; },
      [](float a, float b) { return most(a, b); });
  auto power = [&](int i) { return Group::exp2((logits[i] - top) * float(kLog2e)); };
  wave.each(p.classes, [&](int i) { powers[i] = power(i); });
  const float total = wave.fold(
      p.classes, 0.0f, [&](int i) { return powers[i]; }, [](float a, float b) { return a + b; });
  const bool live = !p.live || p.live[row];
  float skip_prob = 0;
  RouterChoice last{-least_float, -1};
  for (int choice = 0; choice < p.choices; ++choice) {
    const RouterChoice none{least_float, p.classes};
    RouterChoice best = wave.fold(
        p.classes, none,
        [&](int i) {
          const RouterChoice own{powers[i] / total + p.balancing_bias[i], i};
          return either(precedes(last, own), own, none);
        },
        [](RouterChoice a, RouterChoice b) { return either(precedes(b, a), b, a); });
    if (best.index == p.classes) best.index = choice;  // all are NaN
    last = best;
    if (!wave.leader()) continue;
    const float prob = power(best.index) / total;
    const bool skipped = best.index == p.classes - 1;
    if (skipped && live) skip_prob = prob;
    p.experts.at(row)[choice] = skipped || !live ? -1 : best.index;
    p.weights.at(row)[choice] = skipped || !live ? 0.0f : prob;
  }
  if (wave.leader()) p.skip_prob[row] = skip_prob;
}

// The rows from `id` times `columns` on: RMSNorm, the three layers and the choice. `memory`: of the
// group, 2 columns * p.stride() floats.
template <class Gemm, class T>
void route(Gemm& gemm, const ZayaRouterParams<T>& p, int64_t id, int columns, float* memory) {
  const int row = int(id) * columns, count = least(p.rows - row, columns), stride = p.stride();
  float *x = memory, *y = memory + columns * stride;
  gemm.by_waves(count, [&](int c, const auto& wave) {
    const T* state = p.state.at(row + c);
    const float squares = wave.fold(
        p.channels, 0.0f, [&](int k) { return Gemm::value(state[k]) * Gemm::value(state[k]); },
        [](float a, float b) { return a + b; });
    const float scale = 1 / __builtin_sqrtf(squares / float(p.channels) + p.eps);
    float* out = x + c * stride;
    wave.each(p.channels, [&](int k) {
      out[k] = Gemm::value(state[k]) * scale * Gemm::value(p.norm_weight[k]);
    });
  });
  gemm.barrier();
  layer(gemm, p, p.fc1_weight, p.fc1_bias, p.channels, count, x, y);
  layer(gemm, p, p.fc2_weight, p.fc2_bias, p.channels, count, y, x);
  layer(gemm, p, p.out_weight, static_cast<const T*>(nullptr), p.classes, count, x, y);
  gemm.by_waves(count, [&](int c, const auto& wave) {
    choose<Gemm>(p, wave, row + c, y + c * stride, x + c * stride);
  });
}

}  // namespace blockdraft
