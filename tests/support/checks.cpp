// A C interface for ctypes to the tile layer's targets and the kernels on them. Targets: 0 cpu,
// 1 sim, 2 sim with one buffer. Element types: 0 float, 1 bf16, 2 fp16. `dropped` is the barrier
// that sim skips (-1: none). `params` are those that the extension recorded.
#include "bodies.h"
#include "ops/block_attention/body.h"
#include "ops/cca_qkv/body.h"
#include "ops/commit/body.h"
#include "ops/fused_moe/body.h"
#include "ops/plan_branches/body.h"
#include "ops/residual_norm/body.h"
#include "ops/rope_qkv/body.h"
#include "ops/zaya_router/body.h"
#include "targets.h"
#include "tile/cpu/attention.h"
#include "tile/cpu/gemm.h"
#include "tile/sim/attention.h"
#include "tile/sim/gemm.h"

namespace blockdraft {
namespace {

// Every wave of `groups` groups of sim calls body(tile, group).
template <class Tile, class Body>
void on_sim(int64_t groups, int head_dim, uint64_t seed, int dropped, Body body) {
  sim::Scheduler scheduler(seed, dropped);
  scheduler.run(
      groups, [=] { return typename Tile::Memory(head_dim); },
      [&](const sim::Wave& wave, typename Tile::Memory& memory, int64_t group) {
        Tile tile(wave, memory);
        body(tile, group);
      });
}

// Every wave of a group of the target calls body(tile).
template <class T, class X, class Body>
void with_tile(int target, int columns, int head_dim, uint64_t seed, int dropped, Body body) {
  auto run = [&](auto& tile, int64_t) { body(tile); };
  if (target == 0)
    cpu::with_tile_type<T, X>(
        [&](auto type) {
          using Tile = typename decltype(type)::type;
          std::vector<float> memory(Tile::floats(columns, head_dim), NAN);
          Tile tile(memory.data(), head_dim);
          body(tile);
        },
        head_dim);
  if (target == 1) on_sim<sim::Tile<T, X, 2>>(1, head_dim, seed, dropped, run);
  if (target == 2) on_sim<sim::Tile<T, X, 1>>(1, head_dim, seed, dropped, run);
}

template <class Tile, class T>
void attention_on_sim(const AttentionParams<T>& p, uint64_t seed, int dropped) {
  const AttentionColumns columns(Tile::kGroupColumns, Tile::kGroupColumns / 2, 2);
  schedule(p, columns, [&]<AttentionStep kStep>(int64_t groups) {
    const AttentionGrid grid(p, columns);
    if constexpr (kStep == AttentionStep::kAttend)
      return on_sim<Tile>(groups, p.head_dim, seed, dropped, [&](auto& tile, int64_t id) {
        AttentionItem item;
        if (grid.item(p, id, item)) Attention<Tile, T>(tile, p, item).run();
      });
    sim::Scheduler scheduler(seed, dropped);
    scheduler.run(
        groups, [&] { return std::vector<float>(AttentionMerge::kWaves * (p.head_dim + 2), NAN); },
        [&](const sim::Wave& wave, std::vector<float>& memory, int64_t id) {
          sim::Group group(wave);
          merge_attention(group, p, grid, id, memory.data());
        });
  });
}

void dispatch_on_sim(const DispatchParams& p, uint64_t seed, int dropped) {
  constexpr int kShift = 2;
  sim::Scheduler scheduler(seed, dropped);
  scheduler.run(
      1, [&] { return std::vector<int32_t>(((1 << kShift) + 1) * p.num_experts); },
      [&](const sim::Wave& wave, std::vector<int32_t>& counts, int64_t) {
        sim::Group group(wave);
        dispatch(group, p, counts.data(), kShift);
      });
}

}  // namespace
}  // namespace blockdraft

using namespace blockdraft;

extern "C" {

void check_gated_product(int target, int type, const void* w, const void* x, const int* tokens,
                         const float* bias, float* y, int rows, int columns, int depth,
                         uint64_t seed, int dropped) {
  with_type(type, [&]<class T>(T) {
    auto run = [&](auto& gemm) {
      gated_product(gemm, static_cast<const T*>(w), static_cast<const T*>(x), tokens, bias, y, rows,
                    columns, depth);
    };
    if (target == 0) {
      cpu::Gemm<T> gemm;
      return run(gemm);
    }
    using Gemm = sim::Gemm<T>;
    sim::Scheduler scheduler(seed, dropped);
    scheduler.run(
        1, [] { return typename Gemm::Memory(); },
        [&](const sim::Wave& wave, typename Gemm::Memory& memory, int64_t) {
          Gemm gemm(wave, memory);
          run(gemm);
        });
  });
}

void check_attend(int target, int type, const void* q, const void* k, const void* v,
                  const int* from, const int* to, float* out, float* top, float* sum, int m, int n,
                  int depth, float scale, uint64_t seed, int dropped) {
  with_type(type, [&]<class T>(T) {
    with_tile<T, TestColumn>(target, n, depth, seed, dropped, [&](auto& tile) {
      attend(tile, static_cast<const T*>(q), static_cast<const T*>(k), static_cast<const T*>(v),
             from, to, out, top, sum, m, n, depth, scale);
    });
  });
}

void check_copy_and_count(int target, int type, const float* x, void* out, int n, int* count,
                          uint64_t seed, int dropped) {
  with_type(type, [&]<class T>(T) {
    with_group(target, seed, dropped,
               [&](auto& group) { copy_and_count(group, x, static_cast<T*>(out), n, count); });
  });
}

void check_block_attention(int target, int type, const void* params, uint64_t seed, int dropped) {
  with_type(type, [&]<class T>(T) {
    const auto& p = *static_cast<const AttentionParams<T>*>(params);
    if (target == 0) launch(p, two_threads());
    if (target == 1) attention_on_sim<sim::Tile<T, AttentionColumn, 2>>(p, seed, dropped);
    if (target == 2) attention_on_sim<sim::Tile<T, AttentionColumn, 1>>(p, seed, dropped);
  });
}

int schedule_block_attention(const void* params, int group_columns, int64_t* out) {
  Launches launches{out};
  schedule(*static_cast<const AttentionParams<float>*>(params), group_columns,
           [&]<AttentionStep kStep>(int64_t groups) { launches.operator()<kStep>(groups); });
  return launches.count;
}

// Stores the first rows of request 0's row tiles and the row after the last one; returns the number
// of tiles.
int check_row_tiles(const void* params, int group_columns, int* first) {
  const auto& p = *static_cast<const AttentionParams<float>*>(params);
  const AttentionGrid grid(p, group_columns);
  AttentionItem item;
  int tiles = 0;
  for (int64_t id = 0; id < grid.tiles; ++id)
    if (grid.item(p, id, item)) {
      first[tiles++] = item.first_row;
      first[tiles] = item.first_row + item.rows;
    }
  return tiles;
}

// For units of 32 bits.
void check_commit(int target, const void* params, uint64_t seed, int dropped) {
  const auto& p = *static_cast<const CommitParams<uint32_t>*>(params);
  if (target == 0) return launch(p, two_threads());
  schedule(p, [&]<CommitStep>(int64_t requests) {
    on_sim_groups(requests, seed, dropped,
                  [&](sim::Group& group, int64_t request) { commit(group, p, int(request)); });
  });
}

void check_moe_dispatch(int target, const void* params, uint64_t seed, int dropped) {
  const auto& p = *static_cast<const DispatchParams*>(params);
  if (target == 0) return launch(p, two_threads());
  dispatch_on_sim(p, seed, dropped);
}

// Probabilities are double.
void check_plan_branches(int target, const void* params, uint64_t seed, int dropped) {
  const auto& p = *static_cast<const PlanParams<double>*>(params);
  if (target == 0) return launch(p, two_threads());
  schedule(p, [&]<PlanStep>(int64_t groups) {
    sim::Scheduler scheduler(seed, dropped);
    scheduler.run(
        groups,
        [] {
          PlanMemory memory;
          std::memset(&memory, -1, sizeof memory);  // NaN
          return memory;
        },
        [&](const sim::Wave& wave, PlanMemory& memory, int64_t request) {
          sim::Group group(wave);
          plan_branches(group, p, memory, int(request));
        });
  });
}

// Weight formats: 0 as the tokens, 1 e4m3fn, 2 e4m3fnuz, 3 e2m1x2.
void check_fused_moe(int target, int type, int format, const void* params, uint64_t seed,
                     int dropped) {
  auto check = [&]<class T, class W>(T, W) {
    const auto& p = *static_cast<const FusedMoeParams<T, W>*>(params);
    if (target == 0) return launch(p, two_threads());
    using Gemm = sim::Gemm<T>;
    struct Memory {
      typename Gemm::Memory gemm;
      int32_t found[Gemm::kGroupColumns] = {};  // a row that exists, where a barrier is left out
    };
    schedule(p, Gemm::kRows, Gemm::kGroupColumns, [&]<MoeStep kStep>(int64_t groups) {
      if constexpr (kStep == MoeStep::kDispatch)
        return dispatch_on_sim(p.dispatch(), seed, dropped);
      sim::Scheduler scheduler(seed, dropped);
      scheduler.run(
          groups, [] { return Memory(); },
          [&](const sim::Wave& wave, Memory& memory, int64_t id) {
            Gemm gemm(wave, memory.gemm);
            fused_moe<kStep>(gemm, p, id, memory.found);
          });
    });
  };
  with_type(type, [&]<class T>(T token) {
    if (format == 0) check(token, token);
    if (format == 1) check(token, e4m3fn{});
    if (format == 2) check(token, e4m3fnuz{});
    if (format == 3) check(token, e2m1x2{});
  });
}

int schedule_fused_moe(const void* params, int group_columns, int64_t* out) {
  Launches launches{out};
  schedule(*static_cast<const FusedMoeParams<float>*>(params), 16, most(group_columns, 1),
           [&]<MoeStep kStep>(int64_t groups) { launches.operator()<kStep>(groups); });
  return launches.count;
}

// `apart`: whether a head's outputs have memory of their own.
void check_cca_qkv(int target, int type, int format, const void* params, bool apart, uint64_t seed,
                   int dropped) {
  auto check = [&]<class T, class C>(T, C) {
    const auto& p = *static_cast<const CcaParams<T, C>*>(params);
    if (target == 0) return launch(p, two_threads());
    using Gemm = sim::Gemm<T>;
    using Memory = CcaMemory<T>;
    constexpr int kColumns = Gemm::kGroupColumns;
    const int64_t bytes =
        kColumns * Memory::of_row(p.head_dim, p.taps1, apart) + Memory::shared(p.head_dim, p.taps0);
    struct OfGroup {
      typename Gemm::Memory gemm;
      std::vector<float> rest;
    };
    auto divided = [&](OfGroup& memory) {
      return Memory(reinterpret_cast<char*>(memory.rest.data()), kColumns, p.head_dim, p.taps0,
                    p.taps1, apart);
    };
    schedule(p, kColumns, [&]<CcaStep kStep>(int64_t groups) {
      sim::Scheduler scheduler(seed, dropped);
      scheduler.run(
          groups,
          [&] {
            OfGroup memory{{}, std::vector<float>(bytes / sizeof(float), NAN)};
            // rows that exist, where a barrier is left out
            std::fill_n(divided(memory).rows, kColumns, PackedRow{});
            return memory;
          },
          [&](const sim::Wave& wave, OfGroup& memory, int64_t id) {
            Gemm gemm(wave, memory.gemm);
            cca_qkv(gemm, p, id, kColumns, divided(memory));
          });
    });
  };
  with_cache_type(type, format, check);
}

// Of fp32 on a GPU.
int schedule_cca_qkv(const void* params, int, int64_t* out) {
  Launches launches{out};
  const auto& p = *static_cast<const CcaParams<float>*>(params);
  schedule(p, cca_columns(p),
           [&]<CcaStep kStep>(int64_t groups) { launches.operator()<kStep>(groups); });
  return launches.count;
}

void check_residual_norm(int target, int type, const void* params, uint64_t seed) {
  with_type(type, [&]<class T>(T) {
    const auto& p = *static_cast<const ResidualNormParams<T>*>(params);
    if (target == 0) return launch(p, two_threads());
    constexpr int kRows = 3;
    schedule(p, kRows, [&]<ResidualNormStep>(int64_t groups) {
      on_sim_groups(groups, seed, -1,
                    [&](sim::Group& group, int64_t id) { residual_norm(group, p, id, kRows); });
    });
  });
}

void check_rope_qkv(int target, int type, int format, const void* params, uint64_t seed) {
  with_cache_type(type, format, [&]<class T, class C>(T, C) {
    const auto& p = *static_cast<const RopeParams<T, C>*>(params);
    if (target == 0) return launch(p, two_threads());
    constexpr int kHeads = 3;
    schedule(p, kHeads, [&]<RopeStep>(int64_t groups) {
      on_sim_groups(groups, seed, -1,
                    [&](sim::Group& group, int64_t id) { rope_qkv(group, p, id, kHeads); });
    });
  });
}

void check_zaya_router(int target, int type, const void* params, uint64_t seed, int dropped) {
  with_type(type, [&]<class T>(T) {
    const auto& p = *static_cast<const ZayaRouterParams<T>*>(params);
    if (target == 0) return launch(p, two_threads());
    using Gemm = sim::Gemm<T>;
    constexpr int kColumns = Gemm::kGroupColumns;
    struct Memory {
      typename Gemm::Memory gemm;
      std::vector<float> activations;
    };
    schedule(p, Gemm::kRows, kColumns, kColumns, [&]<RouterStep kStep>(int64_t groups) {
      sim::Scheduler scheduler(seed, dropped);
      scheduler.run(
          groups, [&] { return Memory{{}, std::vector<float>(2 * kColumns * p.stride(), NAN)}; },
          [&](const sim::Wave& wave, Memory& memory, int64_t id) {
            Gemm gemm(wave, memory.gemm);
            if constexpr (kStep == RouterStep::kProject)
              project(gemm, p, id, Gemm::kRows);
            else
              route(gemm, p, id, kColumns, memory.activations.data());
          });
    });
  });
}

int schedule_zaya_router(const void* params, int group_columns, int64_t* out) {
  Launches launches{out};
  const auto& p = *static_cast<const ZayaRouterParams<float>*>(params);
  schedule(p, 16, most(group_columns, 1), p.columns_in(kRouterFloats),
           [&]<RouterStep kStep>(int64_t groups) { launches.operator()<kStep>(groups); });
  return launches.count;
}

}  // extern "C"
