// The tile layer's targets and the kernels on them, with a C interface for ctypes. Targets: 0 host,
// 1 sim, 2 sim with one buffer. Element types: 0 float, 1 bf16, 2 fp16. `dropped` is the barrier
// that sim leaves out (-1: none).
#include "block_attention.h"
#include "bodies.h"
#include "commit.h"
#include "targets.h"

namespace blockdraft {

template <class T>
void block_attention_host(const AttentionParams<T>&, const Parallel&);
template <class U>
void commit_host(const CommitParams<U>&, const Parallel&);

namespace {

// body(tile) by every wave of a group of the target.
template <class T, class X, class Body>
void with_tile(int target, int columns, int head_dim, uint64_t seed, int dropped, Body body) {
  if (target == 0)
    host::with_tile_type<T, X>([&](auto type) {
      using Tile = typename decltype(type)::type;
      std::vector<float> memory(Tile::floats(columns, head_dim), NAN);
      Tile tile(memory.data(), head_dim);
      body(tile);
    });
  if (target == 1) sim::run_tile<sim::Tile<T, X, 2>>(seed, dropped, head_dim, body);
  if (target == 2) sim::run_tile<sim::Tile<T, X, 1>>(seed, dropped, head_dim, body);
}

}  // namespace
}  // namespace blockdraft

using namespace blockdraft;

extern "C" {

void check_gemm(int target, int type, const void* a, const void* b, float* c, int m, int n,
                int depth, float scale, uint64_t seed, int dropped) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    with_tile<T, TestColumn>(target, n, depth, seed, dropped, [&](auto& tile) {
      gemm(tile, static_cast<const T*>(a), static_cast<const T*>(b), c, m, n, depth, scale);
    });
  });
}

void check_attend(int target, int type, const void* q, const void* k, const void* v,
                  const int* from, const int* to, float* out, float* top, float* sum, int m, int n,
                  int depth, float scale, uint64_t seed, int dropped) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    with_tile<T, TestColumn>(target, n, depth, seed, dropped, [&](auto& tile) {
      attend(tile, static_cast<const T*>(q), static_cast<const T*>(k), static_cast<const T*>(v),
             from, to, out, top, sum, m, n, depth, scale);
    });
  });
}

void check_copy_and_count(int target, int type, const float* x, void* out, int n, int* count,
                          uint64_t seed, int dropped) {
  with_type(type, [&](auto t) {
    with_group(target, seed, dropped, [&](auto& group) {
      copy_and_count(group, x, static_cast<decltype(t)*>(out), n, count);
    });
  });
}

void check_block_attention(int target, int type, const void* params, uint64_t seed, int dropped) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    const auto& p = *static_cast<const AttentionParams<T>*>(params);
    if (target == 0) return block_attention_host(p, Parallel(threads));
    const AttentionGrid<T> grid(p, sim::Tile<T, AttentionColumn>::kGroupColumns);
    AttentionItem item;
    for (int64_t id = 0; id < grid.items; ++id)
      if (grid.item(p, id, item))
        with_tile<T, AttentionColumn>(target, 0, p.head_dim, seed + id, dropped, [&](auto& tile) {
          Attention<std::decay_t<decltype(tile)>, T>(tile, p, item).run();
        });
    for (int row = 0; row < p.batch * p.max_rows; ++row)
      for (int head = 0; head < p.query_heads; ++head)
        with_group(target, seed, dropped, [&](auto& group) {
          merge_attention(group, p, row / p.max_rows, row % p.max_rows, head);
        });
  });
}

// First rows of request 0's row tiles, and the row after the last; returns how many there are.
int check_row_tiles(const void* params, int group_columns, int* first) {
  const auto& p = *static_cast<const AttentionParams<float>*>(params);
  const AttentionGrid<float> grid(p, group_columns);
  AttentionItem item;
  int tiles = 0;
  for (int64_t id = 0; id < grid.tiles; ++id)
    if (grid.item(p, id, item))
      first[tiles] = item.first_row, first[++tiles] = item.first_row + item.rows;
  return tiles;
}

void check_commit(int target, const void* params, uint64_t seed, int dropped) {  // of 32-bit units
  const auto& p = *static_cast<const CommitParams<uint32_t>*>(params);
  if (target == 0) return commit_host(p, Parallel(threads));
  for (int request = 0; request < p.batch; ++request)
    with_group(target, seed, dropped, [&](auto& group) { commit(group, p, request); });
}

size_t attention_params_size() { return sizeof(AttentionParams<float>); }
size_t commit_params_size() { return sizeof(CommitParams<uint32_t>); }

}  // extern "C"
