// RoPE of projected queries and keys, and the store of keys and values: the kernel body, written
// against the tile layer. A group has heads of a row: some of queries, of keys or of values.
#pragma once

#include "ops/head.h"
#include "ops/rope_qkv/params.h"

namespace blockdraft {

enum class RopeStep { kRotate };

// How a row's heads are divided among groups of up to `heads`.
struct RopeParts {
  int of_queries, of_keys;  // as many of values as of keys

  template <class T, class C>
  RopeParts(const RopeParams<T, C>& p, int heads)
      : of_queries(ceil_div(p.query_heads, heads)), of_keys(ceil_div(p.kv_heads, heads)) {}

  int count() const { return of_queries + 2 * of_keys; }
};

// Calls run<step>(groups) for each launch, where a group has up to `heads` heads.
template <class T, class C, class Run>
void schedule(const RopeParams<T, C>& p, int heads, Run run) {
  run.template operator()<RopeStep::kRotate>(int64_t(p.total_rows) * RopeParts(p, heads).count());
}

// Heads of a row that give each of so many threads a chunk.
template <class T, class C>
int rope_heads(const RopeParams<T, C>& p, int threads) {
  return most(threads * kChunk / p.head_dim, 1);
}

template <class Group, class T, class C>
void rope_qkv(Group& group, const RopeParams<T, C>& p, int64_t id, int heads) {
  const RopeParts parts(p, heads);
  const int number = int(id / parts.count()), part = int(id % parts.count());
  const int key_part = part - parts.of_queries, value_part = key_part - parts.of_keys;
  const bool queries = key_part < 0, values = value_part >= 0;
  const int first = (values ? value_part : queries ? part : key_part) * heads;
  const int count = least((queries ? p.query_heads : p.kv_heads) - first, heads);

  const PackedRow row = find_row(p, number, request_of(group, p.rows, number));
  const bool live = row.position >= 0;
  const float* angles = p.cos_sin.at(live ? row.position : 0);
  const int half = values ? 0 : p.rotary / 2;
  const float factor = queries && live && p.query_scale ? p.query_scale[row.position] : 1;
  const View<const T, 2> in = queries ? p.q : values ? p.v : p.k;
  const View<T, 2> out = queries ? p.q_out : values ? p.v_out : p.k_out;
  const View<C, 3> cache = values ? p.v_cache : p.k_cache;
  const View<const float, 2> scale = values ? p.v_scale : p.k_scale;
  group.each_of(count, p.head_dim / kChunk, [&](int j) {
    const int head = first + j;
    const T* from = in.at(number, head);
    T* to = out.at(number, head);
    const Cell<C> cell = queries ? Cell<C>{} : cell_of(cache, scale, row, head);
    return [=](int chunk) {
      const int i = chunk * kChunk;
      const eight x = live ? rotated<Group>(from, i, angles, half) * factor : eight{};
      Group::store(to + i, keep<Group>(cell, i, x));
    };
  });
}

}  // namespace blockdraft
