// SwiGLU experts of routed rows: the kernel bodies, written against the tile layer.
#pragma once

#include "ops/fused_moe/schedule.h"
#include "ops/moe_dispatch/body.h"
#include "tile/gemm.h"

namespace blockdraft {

// activations[pair] = silu(gate) * up. Gate and up rows of a channel are neighbours in the tile.
template <class Gemm, class P>
void gate_up(Gemm& gemm, const P& p, const MoeItem& item, const int32_t* pairs) {
  const int first = item.tile * (Gemm::kRows / 2);
  const int channels = least(p.inner - first, Gemm::kRows / 2);
  gemm.multiply(
      2 * channels, item.count, p.hidden,
      [&](int i) { return p.gate_up_row(item.expert, i % 2 * p.inner + first + i / 2); },
      [&](int c) { return p.x.at(p.row(pairs[c])); },
      [&](int i, int c, auto y) {
        const auto [gate, up] = Gemm::unzip(y);
        const auto silu = gate / (1 + Gemm::exp2(-float(kLog2e) * gate));
        auto* out = p.activations + int64_t(pairs[c]) * p.inner + first + i / 2;
        Gemm::store(out, silu * up, channels - i / 2);
      });
}

// What the skip adds to a row's output.
template <class Gemm, class P>
float skipped(const P& p, int row, int channel) {
  return p.skip ? p.skip_prob[row] * Gemm::value(p.x.at(row)[channel]) : 0.0f;
}

// Rows with one choice are finished; with more, partials[pair] is left to the combination.
template <class Gemm, class P>
void down(Gemm& gemm, const P& p, const MoeItem& item, const int32_t* pairs) {
  const int first = item.tile * Gemm::kRows;
  const int channels = least(p.hidden - first, Gemm::kRows);
  gemm.multiply(
      channels, item.count, p.inner, [&](int i) { return p.down_row(item.expert, first + i); },
      [&](int c) { return p.activations + int64_t(pairs[c]) * p.inner; },
      [&](int i, int c, auto y) {
        const int pair = pairs[c], row = p.row(pair), count = channels - i;
        if (p.choices > 1) {
          Gemm::store(p.partials + int64_t(pair) * p.hidden + first + i, y, count);
          return;
        }
        y *= p.weight(pair);
        if (p.skip) y += p.skip_prob[row] * Gemm::values(p.x.at(row) + first + i, count);
        Gemm::store(p.out.at(row) + first + i, y, count);
      });
}

// out[row] from the partials of its choices, in their order.
template <class Gemm, class P>
void combine(Gemm& gemm, const P& p, int row) {
  gemm.each(p.hidden, [&](int channel) {
    float total = skipped<Gemm>(p, row, channel);
    for (int pair = row * p.choices; pair < (row + 1) * p.choices; ++pair)
      if (p.expert(pair) >= 0)
        total += p.weight(pair) * p.partials[int64_t(pair) * p.hidden + channel];
    Gemm::store(p.out.at(row) + channel, total);
  });
}

// One group's part of a launch. `found`: kGroupColumns integers in the group's memory.
template <MoeStep kStep, class Gemm, class P>
void fused_moe(Gemm& gemm, const P& p, int64_t id, int32_t* found) {
  if constexpr (kStep == MoeStep::kCombine) return combine(gemm, p, int(id));
  constexpr int kColumns = Gemm::kGroupColumns;
  const int channels = kStep == MoeStep::kDown ? p.hidden : 2 * p.inner;
  const int64_t items = moe_items(p, channels, Gemm::kRows, kColumns);
  if (id >= items) {
    const int first = int(id - items) * kSkippedRows;
    for (int row = first; row < least(p.rows, first + kSkippedRows); ++row)
      if (p.expert(row) < 0) combine(gemm, p, row);
    return;
  }
  MoeItem item;
  if (!find_item(gemm, p, int(id), ceil_div(channels, Gemm::kRows), kColumns, found, item)) return;
  if constexpr (kStep == MoeStep::kGateUp)
    gate_up(gemm, p, item, found);
  else
    down(gemm, p, item, found);
}

}  // namespace blockdraft
