// What cca_qkv and rope_qkv do with the channels of a head, eight at a time: rotary position
// embedding (arXiv 2104.09864), and the store to the KV cache.
#pragma once

#include "base/formats.h"
#include "ops/lineage.h"
#include "tile/group.h"

namespace blockdraft {

constexpr int kChunk = 8;  // channels that are computed with at once

// Channels from i on of the head `in`, where the halves are not made of chunks.
template <class Group, class T>
eight rotated_apart(const T* in, int i, const float* table, int half) {
  eight x = Group::values(in + i);
  for (int j = 0; j < kChunk; ++j) {
    const int channel = i + j, low = channel < half ? channel : channel - half;
    if (channel >= 2 * half) break;
    const float sin = channel < half ? -table[low + half] : table[low + half];
    const float other = Group::value(in[channel < half ? channel + half : low]);
    x[j] = x[j] * table[low] + other * sin;
  }
  return x;
}

// Channels i .. i + 7 of the head `in`, of which the first two halves are rotated by the angles of
// the row `table`: cosines, then sines.
template <class Group, class T>
eight rotated(const T* in, int i, const float* table, int half) {
  if (half % kChunk) return rotated_apart<Group>(in, i, table, half);
  const eight x = Group::values(in + i);
  if (i >= 2 * half) return x;
  const float* angle = table + (i < half ? i : i - half);
  const eight cos = Group::values(angle), sin = Group::values(angle + half);
  return i < half ? x * cos - Group::values(in + i + half) * sin
                  : x * cos + Group::values(in + i - half) * sin;
}

// Where the cache keeps a row's head; `at` null: nowhere.
template <class C>
struct Cell {
  C* at;
  float scale;  // of fp8
};

template <class C>
Cell<C> cell_of(const View<C, 3>& cache, [[maybe_unused]] const View<const float, 2>& scale,
                const PackedRow& row, int head) {
  if (row.page < 0) return {nullptr, 1};
  C* at = cache.at(row.page, row.cell, head);
  if constexpr (Format<C>::kScaled)
    return {at, *scale.at(row.page, head)};
  else
    return {at, 1};
}

// Stores channels from i on, if anywhere, and returns them as they were stored. This pass attends to
// what later ones will: the target that drafts are tested against must not depend on where a pass
// ends.
template <class Group, class C>
eight keep(const Cell<C>& cell, int i, eight x) {
  if (!cell.at) return x;
  if constexpr (Format<C>::kScaled) {
    alignas(8) C codes[kChunk];
    Group::store(codes, x / cell.scale);
    __builtin_memcpy(cell.at + i, codes, sizeof codes);
    return Group::values(codes) * cell.scale;
  } else {
    Group::store(cell.at + i, x);
    return x;
  }
}

}  // namespace blockdraft
