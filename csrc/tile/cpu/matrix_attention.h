// What the attention tile of a CPU does for its matrix unit.
#pragma once

#include "tile/cpu/amx_decode.h"

namespace blockdraft::cpu {

template <class T>
struct MatrixAttention;  // only of bf16

#ifdef __AVX512F__
template <>
struct MatrixAttention<bf16> {
  static constexpr int kColumns = MatrixUnit::kTile;

  static void open() { MatrixUnit::open(kColumns); }
  static void close() { MatrixUnit::close(); }

  // out[rows][kColumns] (+)= a[rows][depth] b[depth][kColumns], where b's elements are pairs along
  // the depth. Reads and writes rows up to the next multiple of 32, and the depth likewise. Calls
  // between(), which must be cheap, after each 32 rows.
  template <class Between>
  static void multiply(const bf16* a, int stride, int rows, int depth, const bf16* b, float* out,
                       bool add, Between between) {
    struct {
      WeightPanel panel;
      WeightPanel step(int k) const { return {panel.first + k, panel.second + k, panel.stride}; }
      void after(int) const {}
    } part;
    for (int i = 0; i < rows; i += MatrixUnit::kPanel) {
      const bf16* first = a + int64_t(i) * stride;
      part.panel = {first, first + int64_t(MatrixUnit::kTile) * stride, stride};
      MatrixUnit::multiply<2, 1>(part, 0, depth, b, 4 * kColumns, 0, out + i * kColumns, add);
      between();
    }
  }

  // out[d][i] := rows[i][d], zeros for i from n up to the next multiple of 32.
  static void transpose(const bf16* const* rows, int n, int dim, int stride, bf16* out) {
    constexpr int kTile = MatrixUnit::kTile, kAhead = 12;
    for (int i = 0; i < n; i += 2 * kTile)
      for (int d = 0; d < dim; d += kTile) {
        auto words = [&](int row) {
          return row < n ? _mm512_cvtepu16_epi32(
                               _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[row] + d)))
                         : __m512i();
        };
        __m512i x[kTile];
        for (int j = 0; j < kTile; ++j) {
          const int row = i + 2 * j;
          for (int k = row + kAhead; d % 32 == 0 && k < least(row + kAhead + 2, n); ++k)
            __builtin_prefetch(rows[k] + d);
          x[j] = _mm512_or_si512(words(row), _mm512_slli_epi32(words(row + 1), 16));
        }
        cpu::transpose(x);
        for (int j = 0; j < kTile; ++j)
          _mm512_storeu_si512(out + int64_t(d + j) * stride + i, x[j]);
      }
  }

  // A multiple of 32 numbers.
  template <class C>
  static void decode(const C* codes, int n, bf16* out) {
    static const ChunkDecoder<C> decoder;
    for (int i = 0; i < n; i += 64) {
      __m512i numbers[2];
      decoder.decode_half(codes + i, bits_below(n - i), numbers);
      _mm512_storeu_si512(out + i, numbers[0]);
      if (n - i > 32) _mm512_storeu_si512(out + i + 32, numbers[1]);
    }
  }
};
#endif

}  // namespace blockdraft::cpu
