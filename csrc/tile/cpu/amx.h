// Products of bf16 by the matrix unit of a CPU (AMX). Its registers are tiles of 16 rows of 64 bytes:
// 16 channels by 32 elements of weights, as they lie; 32 elements by 16 tokens, whose elements are
// staged in pairs; and sums of 16 channels by 16 tokens. A panel is 32 channels, the even ones and
// the odd ones, whose rows are equally far from each other also where two matrices take turns.
// Subnormal numbers count as zeros.
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
    constexpr unsigned kTiles = 1u << 24, kProducts = 1u << 22;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (~d & (kTiles | kProducts))) return false;
    constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
    return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  }();
  return found;
#else
  return false;
#endif
}

struct WeightPanel {
  const bf16 *even, *odd;
  int64_t stride;  // of a half's rows, in elements
};

class MatrixUnit {
 public:
  static constexpr int kTile = 16;              // channels or tokens
  static constexpr int kStep = 32;              // elements
  static constexpr int kPanel = 2 * kTile;      // channels
  static constexpr int kSums = kPanel * kTile;  // of a panel and a tile of tokens
  static constexpr int kTiles = 3;              // of tokens at once, by the number of registers

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

  // sums[tile][half][channel][token] (+)= a panel times kTiles tiles of tokens, of `row` bytes a row
  // and each `next_tile` elements after the other, over the depth from `start` to `end`, of which
  // weights.step(k) has 32 elements of the panel. Of its halves, the second takes the tiles
  // backwards: it finds the last one in its register.
  template <int kTiles, class Weights>
  BLOCKDRAFT_AMX static void multiply(Weights& weights, int start, int end, const bf16* tokens,
                                      int64_t row, int64_t next_tile, float* sums, bool add) {
    asm volatile("" : : : "memory");
    if (add) {
      _tile_loadd(0, sums, 64);
      _tile_loadd(1, sums + kSums / 2, 64);
      if constexpr (kTiles > 1) {
        _tile_loadd(2, sums + kSums, 64);
        _tile_loadd(3, sums + kSums + kSums / 2, 64);
      }
      if constexpr (kTiles > 2) {
        _tile_loadd(4, sums + 2 * kSums, 64);
        _tile_loadd(5, sums + 2 * kSums + kSums / 2, 64);
      }
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      _tile_zero(4);
      _tile_zero(5);
    }
    for (int k = start; k < end; k += kStep) {
      const WeightPanel panel = weights.step(k);
      asm volatile("" : : : "memory");
      _tile_loadd(6, panel.even, panel.stride * 2);
      _tile_loadd(7, tokens, row);
      _tile_dpbf16ps(0, 6, 7);
      if constexpr (kTiles > 1) {
        _tile_loadd(7, tokens + next_tile, row);
        _tile_dpbf16ps(2, 6, 7);
      }
      if constexpr (kTiles > 2) {
        _tile_loadd(7, tokens + 2 * next_tile, row);
        _tile_dpbf16ps(4, 6, 7);
      }
      _tile_loadd(6, panel.odd, panel.stride * 2);
      if constexpr (kTiles > 2) {
        _tile_dpbf16ps(5, 6, 7);
        _tile_loadd(7, tokens + next_tile, row);
      }
      if constexpr (kTiles > 1) {
        _tile_dpbf16ps(3, 6, 7);
        _tile_loadd(7, tokens, row);
      }
      _tile_dpbf16ps(1, 6, 7);
      tokens += row / 2 * kTile;
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + kSums / 2, 64);
    if constexpr (kTiles > 1) {
      _tile_stored(2, sums + kSums, 64);
      _tile_stored(3, sums + kSums + kSums / 2, 64);
    }
    if constexpr (kTiles > 2) {
      _tile_stored(4, sums + 2 * kSums, 64);
      _tile_stored(5, sums + 2 * kSums + kSums / 2, 64);
    }
  }
#undef BLOCKDRAFT_AMX
};

// The first `count` bits.
inline uint32_t bits_below(int count) { return count < 32 ? (1u << count) - 1 : ~0u; }

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

// The product, by `Weights` that arrange panels (amx_weights.h).
template <class Weights>
class MatrixGemm {
  static constexpr int kTile = MatrixUnit::kTile, kStep = MatrixUnit::kStep;
  static constexpr int kPanel = MatrixUnit::kPanel, kSums = MatrixUnit::kSums;

 public:
  template <class Weight, class Column, class Epilogue>
  void multiply(int rows, int columns, int depth, Weight weight, Column column, Epilogue epilogue) {
    constexpr int kTiles = MatrixUnit::kTiles;
    const int tiles = ceil_div(columns, kTile), tile = ceil_div(columns, tiles);
    const int64_t tile_size = int64_t(ceil_div(depth, kStep)) * kStep * tile;
    bf16* tokens = reinterpret_cast<bf16*>(aligned(memory_, tiles * tile_size / 2));
    for (int t = 0; t < tiles; ++t)
      stage(t * tile, tile, columns, depth, column, tokens + t * tile_size);
    MatrixUnit::open(tile);
    for (int i = 0; i < rows; i += kPanel) {
      weights_.open(weight, i, rows, depth);
      const int at_once = ceil_div(tiles, ceil_div(tiles, kTiles));
      for (int t = 0; t < tiles; t += at_once) {
        const int width = least(at_once, tiles - t);
        alignas(64) float sums[kTiles * kSums];
        weights_.add(depth, sums, width * kSums, [&](int k, int end, float* out, bool add) {
          const bf16* x = tokens + t * tile_size + k * tile;
          if (width == 1)
            MatrixUnit::multiply<1>(weights_, k, end, x, tile * 4, tile_size, out, add);
          if (width == 2)
            MatrixUnit::multiply<2>(weights_, k, end, x, tile * 4, tile_size, out, add);
          if (width == 3)
            MatrixUnit::multiply<3>(weights_, k, end, x, tile * 4, tile_size, out, add);
        });
        for (int u = 0; u < width; ++u) {
          const int first = (t + u) * tile;
          finish(i, least(kPanel, rows - i), first, least(tile, columns - first), sums + u * kSums,
                 epilogue);
        }
      }
    }
    MatrixUnit::close();
  }

 private:
  // out[step][pair][token] := the elements of `tile` tokens from `first` on; zeros beyond.
  template <class Column>
  static void stage(int first, int tile, int columns, int depth, Column column, bf16* out) {
    const bf16* rows[kTile] = {};
    for (int c = 0; c < least(tile, columns - first); ++c) rows[c] = column(first + c);
    for (int k = 0; k < depth; k += kStep) {
      const __mmask32 mask = bits_below(depth - k);
      if (tile == 1) {
        const __m512i x = rows[0] ? _mm512_maskz_loadu_epi16(mask, rows[0] + k) : __m512i();
        _mm512_storeu_si512(out, x);
        out += kStep;
        continue;
      }
      __m512i x[kTile];
      for (int c = 0; c < kTile; ++c)
        x[c] = rows[c] ? _mm512_maskz_loadu_epi16(mask, rows[c] + k) : __m512i();
      transpose(x);
      for (int pair = 0; pair < kTile; ++pair, out += 2 * tile)
        _mm512_mask_storeu_epi32(out, (1 << tile) - 1, x[pair]);
    }
  }

  template <class Epilogue>
  static void finish(int channel, int channels, int token, int tokens, const float* sums,
                     Epilogue epilogue) {
    for (int i = 0; i < channels; i += kEpilogueRows) {
      const float* even = sums + i / 2 * kTile;
      const float* odd = even + kSums / 2;
      const __m512 a = _mm512_load_ps(even), b = _mm512_load_ps(odd);
      const __m512 c = _mm512_load_ps(even + kTile), d = _mm512_load_ps(odd + kTile);
      const __m512 ab[] = {_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)};
      const __m512 cd[] = {_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)};
      __m512 y[4];  // y[j] has tokens j, j + 4, ...
      for (int j = 0; j < 2; ++j) {
        y[2 * j] = _mm512_shuffle_ps(ab[j], cd[j], 0x44);
        y[2 * j + 1] = _mm512_shuffle_ps(ab[j], cd[j], 0xee);
      }
      alignas(64) four out[kTile];
      for (int j = 0; j < 4; ++j) {
        out[j] = (four)_mm512_extractf32x4_ps(y[j], 0);
        out[4 + j] = (four)_mm512_extractf32x4_ps(y[j], 1);
        out[8 + j] = (four)_mm512_extractf32x4_ps(y[j], 2);
        out[12 + j] = (four)_mm512_extractf32x4_ps(y[j], 3);
      }
      for (int t = 0; t < tokens; ++t) {
        for (int j = channels - i; j < kEpilogueRows; ++j) out[t][j] = 0;
        epilogue(channel + i, token + t, out[t]);
      }
    }
  }

  Weights weights_;
  std::vector<float> memory_;
};

}  // namespace blockdraft::cpu
#endif
