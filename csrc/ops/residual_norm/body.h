// The residual stream and its RMSNorm: the kernel body, written against the tile layer.
#pragma once

#include "ops/residual_norm/params.h"
#include "tile/group.h"

namespace blockdraft {

enum class ResidualNormStep { kNorm };

// Calls run<step>(groups) for each launch, where a group has `rows` rows.
template <class T, class Run>
void schedule(const ResidualNormParams<T>& p, int rows, Run run) {
  run.template operator()<ResidualNormStep::kNorm>(int64_t(ceil_div(p.rows, rows)));
}

// The rows from `id` times `rows` on. A wave has a whole row, eight elements in each thread at a
// time, so that few rows have many bytes in flight. In between, `norm` holds the rounded stream.
template <class Group, class T>
void residual_norm(Group& group, const ResidualNormParams<T>& p, int64_t id, int rows) {
  const int first = int(id) * rows;
  auto scaled = [](eight y, const T* scale, const T* bias, int k) {
    if (bias) y += Group::values(bias + k);
    if (scale) y *= Group::values(scale + k);
    return y;
  };
  group.by_waves(least(rows, p.rows - first), [&](int i, const auto& wave) {
    const int row = first + i, from = p.index ? p.index[row] : row;
    const T* x = p.x.at(from);
    const float* residual = p.residual ? p.residual.at(from) : nullptr;
    float* stream = p.stream ? p.stream.at(row) : nullptr;
    T* out = p.norm.at(row);
    const float squares = wave.fold(
        p.hidden / 8, 0.0f,
        [&](int j) {
          const int k = 8 * j;
          eight y = scaled(Group::values(x + k), p.scale, p.bias, k);
          if (residual)
            y += scaled(Group::values(residual + k), p.residual_scale, p.residual_bias, k);
          if (stream) Group::store(stream + k, y);
          Group::store(out + k, y);
          y = Group::values(out + k);
          return sum_of(y * y);
        },
        [](float a, float b) { return a + b; });
    const float factor = 1 / __builtin_sqrtf(squares / float(p.hidden) + p.eps);
    wave.each(p.hidden / 8, [&](int j) {
      T* y = out + 8 * j;
      Group::store(y, Group::values(y) * factor * Group::values(p.weight + 8 * j));
    });
  });
}

}  // namespace blockdraft
