// The product of a CPU. Its matrix unit (amx.h), if it has one, multiplies weights of bf16 and tokens
// of bf16, or of fp32 as the sum of two. Otherwise weights are read as they lie, once; tokens are
// staged as fp32 beside each other. A tile of 4
// channels by a few tokens is summed along the depth in the lanes of its accumulators, so that a
// sum's order depends on the depth alone.
#pragma once

#include <algorithm>
#include <vector>

#include "tile/cpu/amx_weights.h"
#include "tile/cpu/group.h"
#include "tile/cpu/plain.h"
#include "tile/cpu/scaled.h"
#include "tile/gemm.h"

namespace blockdraft::cpu {

// `W`: how weights are stored, T itself or a format with scales.
template <class T, class W = T>
class Gemm : public Group {
  typedef std::conditional_t<Format<W>::kScaled, ScaledWeights<W>, PlainWeights<W>> Weights;
  typedef typename Weights::Row Row;
  static constexpr int kTileColumns = Weights::kTileColumns;
  static constexpr int kUnit = Weights::kUnit;    // elements whose tokens are staged at once
  static constexpr int kDepth = Weights::kDepth;  // of a part, of which a tile stays in the L1

 public:
  static constexpr int kRows = 256, kEpilogueRows = kWide;
#ifdef __AVX512F__
  static constexpr bool kMayTile = std::is_same_v<T, bf16>;  // by a matrix unit
  static constexpr int kGroupColumns = kMayTile ? MatrixUnit::kTiles * MatrixUnit::kTile : 96;
#else
  static constexpr bool kMayTile = false;
  static constexpr int kGroupColumns = 48;
#endif
  // What a layer's columns in memory should be.
  typedef std::conditional_t<kMayTile, T, float> Staged;

  template <class Weight, class Column, class Epilogue>
  void multiply(int rows, int columns, int depth, Weight weight, Column column, Epilogue epilogue) {
#ifdef __AVX512F__
    if constexpr (std::is_same_v<T, bf16> && std::is_convertible_v<decltype(column(0)), const T*>) {
      bool fits = has_matrix_unit();
      if constexpr (Format<W>::kScaled) fits = fits && MatrixWeights::fits(weight, rows, depth);
      if (fits) return matrix_.multiply(rows, columns, depth, weight, column, epilogue);
    }
    if constexpr (kMayTile && !Format<W>::kScaled &&
                  std::is_convertible_v<decltype(column(0)), const float*>)
      if (has_matrix_unit()) return multiply_halves(rows, columns, depth, weight, column, epilogue);
#endif
    [[maybe_unused]] const SubnormalsOf<W> kept{};
    const int parts = ceil_div(depth, kDepth);
    const int staged = most(1, least(kStaged / (columns * kDepth), parts));  // at a time
    const int width = ceil_div(rows, kEpilogueRows) * kEpilogueRows;
    float* sums = aligned(sum_memory_, width * columns);  // [column][channel]
    if (parts == 0) std::fill(sums, sums + width * columns, 0.0f);
    for (int first = 0; first < parts; first += staged) {
      const int last = least(first + staged, parts);
      stage(columns, depth, first, last, column);
      for (int i = 0; i < rows; i += kTileRows)
        for (int part = first; part < last; ++part)
          absorb(i, rows, columns, depth, part, tokens_ + (part - first) * columns * kDepth, weight,
                 sums + i, width);
    }
    // Not after each tile of channels, because what a column's epilogues write lies together.
    for (int c = 0; c < columns; ++c, sums += width) {
      for (int i = rows; i < width; ++i) sums[i] = 0;
      for (int i = 0; i < rows; i += kEpilogueRows) epilogue(i, c, load_wide(sums + i));
    }
  }

 private:
  static constexpr int kStaged = kGroupColumns * 2048;  // numbers of tokens that stay in the L2

#ifdef __AVX512F__
  // Columns of fp32 by the matrix unit: each is the sum of two of bf16, to 2^-16 of its numbers.
  template <class Weight, class Column, class Epilogue>
  void multiply_halves(int rows, int columns, int depth, Weight weight, Column column,
                       Epilogue epilogue) {
    static_assert(!Format<W>::kScaled);
    const int apart = ceil_div(depth, kWide) * kWide;
    bf16* const halves = reinterpret_cast<bf16*>(aligned(token_memory_, columns * apart));
    for (int c = 0; c < columns; ++c) split(column(c), depth, halves + 2 * c * apart, apart);
    for (int first = 0; first < columns; first += kGroupColumns / 2) {
      const int count = least(columns - first, kGroupColumns / 2);
      wide high[2];  // of the last column's channels, of which two vectors come in turn
      matrix_.multiply(
          rows, 2 * count, depth, weight, [&](int c) { return halves + (2 * first + c) * apart; },
          [&](int i, int c, wide y) {
            wide& before = high[i / kWide % 2];
            if (c % 2 == 0)
              before = y;
            else
              epilogue(i, first + c / 2, before + y);
          });
    }
  }
  // out[0], out[apart] := the two halves of x; the second one of inf and NaN is 0.
  static void split(const float* x, int depth, bf16* out, int apart) {
    constexpr int kInfOrNan = 0x99;
    for (int k = 0; k < depth; k += kWide) {
      const __mmask16 within = x ? bits_below(depth - k) : 0;
      const __m512 all = _mm512_maskz_loadu_ps(within, x + k);
      const __mmask16 odd = _mm512_fpclass_ps_mask(all, kInfOrNan);
      const __mmask16 nan = _mm512_cmp_ps_mask(all, all, _CMP_UNORD_Q);
      uwide first = (uwide)all & 0xffff0000u;
      first = (uwide)_mm512_mask_or_epi32((__m512i)first, nan, (__m512i)first,
                                          _mm512_set1_epi32(1 << 22));  // quiet
      const __m512 rest = _mm512_maskz_sub_ps(~odd, all, (__m512)first);
      const uwide second = (uwide)rest + 0x8000u;
      for (int half = 0; half < 2; ++half)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + half * apart + k),
                            _mm512_cvtepi32_epi16((__m512i)((half ? second : first) >> 16)));
    }
  }
#endif

  // f(first, width) for tiles of the columns, whose widths differ by at most one.
  template <class F>
  static void each_tile(int columns, F f) {
    const int tiles = ceil_div(columns, kTileColumns);
    for (int t = 0; t < tiles; ++t) {
      const auto [first, width] = part_of(columns, tiles, t);
      f(first, width);
    }
  }

  // tokens_ := parts of the columns, as [part][tile][unit][column of the tile][kUnit].
  template <class Column>
  void stage(int columns, int depth, int first_part, int last_part, Column column) {
    tokens_ = aligned(token_memory_, int64_t(last_part - first_part) * columns * kDepth);
    for (int part = first_part; part < last_part; ++part) {
      const int start = part * kDepth, count = least(depth - start, kDepth);
      each_tile(columns, [&](int first, int width) {
        float* tile = tokens_ + ((part - first_part) * columns + first) * kDepth;
        for (int c = 0; c < width; ++c)
          stage_column(column(first + c), start, count, tile + c * kUnit, width * kUnit);
      });
    }
  }
  template <class X>
  static void stage_column(const X* src, int start, int count, float* out, int stride) {
    for (int k = 0; k < count; k += kUnit, out += stride) {
      X padded[kUnit] = {};
      const X* unit = src + start + k;
      if (count - k < kUnit) unit = std::copy(unit, unit + count - k, padded) - (count - k);
      Weights::stage_unit(unit, out);
    }
  }

  // Adds a part of the depth to the sums of four channels in all columns, `stride` from each other.
  // The next channels are fetched into the L2 meanwhile: of lines that the L1 waits for there are
  // few.
  template <class Weight>
  void absorb(int i, int rows, int columns, int depth, int part, const float* tokens, Weight weight,
              float* total, int stride) {
    const int start = part * kDepth, count = least(depth - start, kDepth);
    Row own[kTileRows], next[kTileRows];
    for (int j = 0; j < kTileRows; ++j) {
      own[j] = weight(least(i + j, rows - 1)) + start;
      next[j] = weight(least(i + kTileRows + j, rows - 1)) + start;
    }
    Fetch<Row> fetch{{next[0], next[1], next[2], next[3]}, ceil_div(columns, kTileColumns), 0};
    each_tile(columns, [&](int first, int width) {
      const float* x = tokens + first * kDepth;
      four sums[kTileColumns];
      ++fetch.turn;
      if (width == 1) Weights::template multiply<1>(own, fetch, x, sums, count);
      if (width == 2) Weights::template multiply<2>(own, fetch, x, sums, count);
      if (width == 3) Weights::template multiply<3>(own, fetch, x, sums, count);
      if constexpr (kTileColumns > 3)
        if (width == 4) Weights::template multiply<4>(own, fetch, x, sums, count);
      if constexpr (kTileColumns > 4) {
        if (width == 5) Weights::template multiply<5>(own, fetch, x, sums, count);
        if (width == 6) Weights::template multiply<6>(own, fetch, x, sums, count);
      }
      for (int c = 0; c < width; ++c) {
        float* at = total + (first + c) * stride;
        four before;
        std::memcpy(&before, at, sizeof before);
        const four sum = part ? before + sums[c] : sums[c];
        std::memcpy(at, &sum, sizeof sum);
      }
    });
  }

  // kept between calls
  std::vector<float> token_memory_, sum_memory_;
  float* tokens_ = nullptr;
#ifdef __AVX512F__
  typedef std::conditional_t<Format<W>::kScaled, ScaledPanels<W>, PlainPanels> MatrixWeights;
  MatrixGemm<MatrixWeights> matrix_;
#endif
};

// Output channels of a tile, so that each thread has one.
template <class Gemm>
int rows_of_tile(int channels, int threads) {
  const int share = ceil_div(channels, threads);
  return least(ceil_div(share, Gemm::kEpilogueRows) * Gemm::kEpilogueRows, Gemm::kRows);
}

static_assert(GemmTarget<Gemm<bf16>, bf16>);
static_assert(GemmTarget<Gemm<bf16>, bf16, float>);
static_assert(ScaledGemmTarget<Gemm<bf16, e2m1x2>, bf16, e2m1x2>);

}  // namespace blockdraft::cpu
