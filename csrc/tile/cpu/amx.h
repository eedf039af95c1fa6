// Products of bf16 by the matrix unit of a CPU (AMX). Its registers are tiles of 16 rows of 64 bytes:
// 16 channels by 32 elements of weights, as they lie; 32 elements by 16 tokens, whose elements are
// staged in pairs; and sums of 16 channels by 16 tokens. A panel is 32 channels in two halves, the
// even ones and the odd ones, whose rows are equally far from each other also where two matrices
// take turns. Up to 3 tiles of tokens are multiplied by both halves at once; more by one after the
// other, so that weights are read once and at an even pace. Subnormal numbers count as zeros.
#pragma once

#ifdef __AVX512F__
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <vector>

#include "tile/cpu/group.h"
#include "tile/gemm.h"

namespace blockdraft::cpu {

// Whether this CPU has the unit; also asks the kernel to let this process use it, whose threads then
// save more registers.
inline bool has_matrix_unit() {
#ifdef __linux__
  static const bool found = [] {
    unsigned a, b, c, d;
    constexpr unsigned kTiles = 1u << 24, kProducts = 1u << 22, kByteLookups = 1u << 1;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    if ((~d & (kTiles | kProducts)) || (~c & kByteLookups)) return false;
    constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
    return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  }();
  return found;
#else
  return false;
#endif
}

// 16 rows of weights, or twice as many.
struct WeightPanel {
  const bf16 *first, *second;
  int64_t stride;  // of rows, in elements
};

class MatrixUnit {
 public:
  static constexpr int kTile = 16;             // channels or tokens
  static constexpr int kStep = 32;             // elements
  static constexpr int kPanel = 2 * kTile;     // channels
  static constexpr int kSums = kTile * kTile;  // of a tile of channels and one of tokens
  static constexpr int kTogether = 3;          // tiles of tokens that both halves are multiplied by
  static constexpr int kTiles = 6;             // of tokens at most, by the number of registers

  // Registers: sums 0 to 5, weights 6, tokens 7.
  static constexpr int kWeights = 6;

#define BLOCKDRAFT_AMX __attribute__((noinline, target("amx-tile,amx-bf16")))
  // For tiles of so many tokens.
  BLOCKDRAFT_AMX static void open(int tokens) {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    for (int i = 0; i < 8; ++i) config.bytes[i] = 4 * (i == kWeights ? kTile : tokens);
    asm volatile("" : : "r"(&config) : "memory");  // gcc's intrinsics do not say what they read
    _tile_loadconfig(&config);
  }
  BLOCKDRAFT_AMX static void close() { _tile_release(); }

  // sums[half][tile][channel][token] (+)= so many halves of a panel times tiles of tokens, of `row`
  // bytes a row and each `next_tile` elements after the other, over the depth from `start` to `end`.
  // weights.step(k) has 32 elements of the panel; weights.after(k) is called when they are read. Of
  // two halves, the second takes the tiles backwards: it finds the last one in its register.
  template <int kHalves, int kTiles, class Weights>
  BLOCKDRAFT_AMX static void multiply(Weights& weights, int start, int end, const bf16* tokens,
                                      int64_t row, int64_t next_tile, float* sums, bool add) {
    static_assert(kTiles <= (kHalves == 2 ? kTogether : MatrixUnit::kTiles));
    // Where a register's sums are in memory; -1: unused.
    auto place = [](int sum) consteval {
      if (kHalves == 1) return sum < kTiles ? sum : -1;
      const int half = sum / kTogether, tile = sum % kTogether;
      return tile < kTiles ? half * kTiles + tile : -1;
    };
#define BLOCKDRAFT_SUMS(f) f(0) f(1) f(2) f(3) f(4) f(5)
#define BLOCKDRAFT_ZERO(sum) _tile_zero(sum);
#define BLOCKDRAFT_LOAD(sum) \
  if constexpr (place(sum) >= 0) _tile_loadd(sum, sums + place(sum) * kSums, 64);
#define BLOCKDRAFT_STORE(sum) \
  if constexpr (place(sum) >= 0) _tile_stored(sum, sums + place(sum) * kSums, 64);
#define BLOCKDRAFT_MULTIPLY(sum, tile, again)                                                  \
  if constexpr (place(sum) >= 0) {                                                             \
    if constexpr (!again || tile + 1 < kTiles) _tile_loadd(7, tokens + tile * next_tile, row); \
    _tile_dpbf16ps(sum, 6, 7);                                                                 \
  }
    asm volatile("" : : : "memory");
    if (add) {
      BLOCKDRAFT_SUMS(BLOCKDRAFT_LOAD)
    } else {
      BLOCKDRAFT_SUMS(BLOCKDRAFT_ZERO)
    }
    for (int k = start; k < end; k += kStep) {
      const WeightPanel panel = weights.step(k);
      asm volatile("" : : : "memory");
      _tile_loadd(6, panel.first, panel.stride * 2);
      BLOCKDRAFT_MULTIPLY(0, 0, false)
      BLOCKDRAFT_MULTIPLY(1, 1, false)
      BLOCKDRAFT_MULTIPLY(2, 2, false)
      if constexpr (kHalves == 1) {
        BLOCKDRAFT_MULTIPLY(3, 3, false)
        BLOCKDRAFT_MULTIPLY(4, 4, false)
        BLOCKDRAFT_MULTIPLY(5, 5, false)
      } else {
        _tile_loadd(6, panel.second, panel.stride * 2);
        BLOCKDRAFT_MULTIPLY(5, 2, true)
        BLOCKDRAFT_MULTIPLY(4, 1, true)
        BLOCKDRAFT_MULTIPLY(3, 0, true)
      }
      tokens += row / 2 * kTile;
      asm volatile("" : : : "memory");
      weights.after(k);
    }
    BLOCKDRAFT_SUMS(BLOCKDRAFT_STORE)
#undef BLOCKDRAFT_SUMS
#undef BLOCKDRAFT_ZERO
#undef BLOCKDRAFT_LOAD
#undef BLOCKDRAFT_STORE
#undef BLOCKDRAFT_MULTIPLY
  }
#undef BLOCKDRAFT_AMX
};

// The first `count` bits, none of a negative one.
inline uint64_t bits_below(int count) {
  return count <= 0 ? 0 : count < 64 ? (uint64_t(1) << count) - 1 : ~uint64_t(0);
}

// 16 rows of 16 pairs become columns.
inline void transpose(__m512i (&x)[16]) {
  __m512i y[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
    x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
    x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
    x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512i low0 = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
    const __m512i high0 = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
    const __m512i low1 = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
    const __m512i high1 = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
    y[i] = _mm512_shuffle_i32x4(low0, low1, 0x88);
    y[i + 8] = _mm512_shuffle_i32x4(low0, low1, 0xdd);
    y[i + 4] = _mm512_shuffle_i32x4(high0, high1, 0x88);
    y[i + 12] = _mm512_shuffle_i32x4(high0, high1, 0xdd);
  }
  std::copy(y, y + 16, x);
}

// The product, by `Weights` that arrange panels (amx_weights.h). The epilogues of a panel's channels
// come column by column.
template <class Weights>
class MatrixGemm {
  static constexpr int kTile = MatrixUnit::kTile, kStep = MatrixUnit::kStep;
  static constexpr int kPanel = MatrixUnit::kPanel, kSums = MatrixUnit::kSums;

 public:
  template <class Weight, class Column, class Epilogue>
  void multiply(int rows, int columns, int depth, Weight weight, Column column, Epilogue epilogue) {
    const int tiles = ceil_div(columns, kTile), tile = ceil_div(columns, tiles);
    const int64_t tile_size = int64_t(ceil_div(depth, kStep)) * kStep * tile;
    bf16* tokens = reinterpret_cast<bf16*>(aligned(memory_, tiles * tile_size / 2));
    for (int t = 0; t < tiles; ++t)
      stage(t * tile, tile, columns, depth, column, tokens + t * tile_size);
    MatrixUnit::open(tile);
    for (int i = 0; i < rows; i += kPanel) {
      alignas(64) float sums[2 * MatrixUnit::kTiles * kSums];
      weights_.open(weight, i, rows, depth);
      auto run = [&]<int kHalves, int kTiles>(int half) {
        weights_.begin(half, kHalves);
        weights_.add(sums + half * tiles * kSums, tiles, [&](int k, int end, float* out) {
          MatrixUnit::multiply<kHalves, kTiles>(weights_, k, end, tokens + k * tile, tile * 4,
                                                tile_size, out, false);
        });
      };
      if (tiles == 1) run.template operator()<2, 1>(0);
      if (tiles == 2) run.template operator()<2, 2>(0);
      if (tiles == 3) run.template operator()<2, 3>(0);
      for (int half = 0; half < 2; ++half) {
        if (tiles == 4) run.template operator()<1, 4>(half);
        if (tiles == 5) run.template operator()<1, 5>(half);
        if (tiles == 6) run.template operator()<1, 6>(half);
      }
      for (int t = 0; t < tiles; ++t) {
        const float* even = sums + t * kSums;
        finish(i, least(kPanel, rows - i), t * tile, least(tile, columns - t * tile), even,
               even + tiles * kSums, epilogue);
      }
    }
    MatrixUnit::close();
  }

 private:
  // out[step][pair][token] := the elements of `tile` tokens from `first` on, pairs in the order of
  // the weights; zeros beyond.
  template <class Column>
  static void stage(int first, int tile, int columns, int depth, Column column, bf16* out) {
    const bf16* rows[kTile] = {};
    int pairs[kTile];
    for (int p = 0; p < kTile; ++p) pairs[p] = Weights::pair(p);
    const __m512i order = _mm512_loadu_si512(pairs);
    for (int c = 0; c < least(tile, columns - first); ++c) rows[c] = column(first + c);
    for (int k = 0; k < depth; k += kStep) {
      const __mmask32 mask = uint32_t(bits_below(depth - k));
      if (tile == 1) {
        const __m512i x = _mm512_maskz_loadu_epi16(mask, rows[0] + k);
        _mm512_storeu_si512(out, _mm512_permutexvar_epi32(order, x));
        out += kStep;
        continue;
      }
      __m512i x[kTile];
      for (int c = 0; c < kTile; ++c)
        x[c] = rows[c] ? _mm512_maskz_loadu_epi16(mask, rows[c] + k) : __m512i();
      transpose(x);
      for (int pair = 0; pair < kTile; ++pair, out += 2 * tile)
        _mm512_mask_storeu_epi32(out, (1 << tile) - 1, x[Weights::pair(pair)]);
    }
  }

  // The epilogues of a panel's channels and a tile of tokens, from sums[channel][token] of the even
  // channels and of the odd ones.
  template <class Epilogue>
  static void finish(int channel, int channels, int token, int tokens, const float* even,
                     const float* odd, Epilogue epilogue) {
    __m512i a[kTile], b[kTile];
    for (int i = 0; i < kTile; ++i) {
      a[i] = _mm512_load_si512(even + i * kTile);
      b[i] = _mm512_load_si512(odd + i * kTile);
    }
    transpose(a);
    transpose(b);
    const __mmask16 first = __mmask16(bits_below(channels));
    const __mmask16 second = __mmask16(bits_below(channels - kTile));
    for (int t = 0; t < tokens; ++t) {
      const __m512i low = _mm512_unpacklo_epi32(a[t], b[t]);
      const __m512i high = _mm512_unpackhi_epi32(a[t], b[t]);
      const __m512i order = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
      auto sums = [](__mmask16 mask, __m512i x) {
        return (wide)_mm512_castsi512_ps(_mm512_maskz_mov_epi32(mask, x));
      };
      epilogue(channel, token + t, sums(first, _mm512_permutex2var_epi64(low, order, high)));
      if (channels <= kTile) continue;
      const __m512i rest = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
      epilogue(channel + kTile, token + t,
               sums(second, _mm512_permutex2var_epi64(low, rest, high)));
    }
  }

  Weights weights_;
  std::vector<float> memory_;
};

}  // namespace blockdraft::cpu
#endif
