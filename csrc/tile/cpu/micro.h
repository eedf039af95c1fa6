// Micro-kernels of a CPU: products of a few rows by 8, 16 or 32 columns, whose sums stay in registers.
// Without AVX2 the compiler splits the vectors. Operands are fp32, in the order in which they are
// read; or bf16, 12 rows by 16 columns at a time, if the CPU has bf16 dot products.
#pragma once

#include <array>
#include <utility>

#include "tile/cpu/vector.h"

namespace blockdraft::cpu {

// With AVX2 12 of 16 registers are sums of 6 rows. With AVX-512 24 of 32 are sums of 12 rows and 32
// columns: 14 loads for 24 multiply-adds, which a CPU starts as fast.
constexpr int kMicroRows = kWide == 16 ? 12 : 6;

// c[i][0..columns) (+)= sum over k < depth of a[i * row + k * step] * b[k][0..columns), for i < R,
// where `columns` are kVectors vectors, and rows of b and c lie kStride apart.
template <int R, bool kAccumulate, int kStride, int kVectors>
__attribute__((noinline)) void micro(const float* a, int64_t row, int64_t step, const float* b,
                                     float* c, int depth) {
  wide sum[R][kVectors];
#pragma GCC unroll 12
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v)
      sum[i][v] = kAccumulate ? load_wide(c + i * kStride + v * kWide) : wide{};
  for (; depth > 0; --depth, a += step, b += kStride) {
    wide y[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) y[v] = load_wide(b + v * kWide);
#pragma GCC unroll 12
    for (int i = 0; i < R; ++i) {
      const wide x = splat_wide(a[i * row]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[i][v] += x * y[v];
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) store_wide(c + i * kStride + v * kWide, sum[i][v]);
}

// `rows` output rows, in blocks of about the same size. Calls before(), which must be cheap, before
// each.
template <bool kAccumulate, int kStride, int kVectors, class Before>
void product(const float* a, int64_t row, int64_t step, const float* b, float* c, int rows,
             int depth, Before before) {
  static constexpr auto of_rows = []<int... R>(std::integer_sequence<int, R...>) {
    return std::array{micro<R + 1, kAccumulate, kStride, kVectors>...};
  }(std::make_integer_sequence<int, kMicroRows>());
  const int blocks = ceil_div(rows, kMicroRows);
  for (int i = 0; i < blocks; ++i) {
    const Part block = part_of(rows, blocks, i);
    before();
    of_rows[block.count - 1](a + block.first * row, row, step, b, c + block.first * kStride, depth);
  }
}

typedef uint32_t Pair __attribute__((may_alias));  // two bf16, in memory declared as float

#ifdef __AVX512F__
inline bool has_dots() {
  static const bool found = __builtin_cpu_supports("avx512bf16");
  return found;
}

// As micro, times `factor`, for operands that are pairs of bf16 along the depth, low half first.
// These have twice the multiply-adds per cycle.
template <int R, bool kAccumulate>
__attribute__((noinline, target("avx512bf16"))) void dot_micro(const Pair* a, int64_t row,
                                                               int64_t step, const Pair* b,
                                                               float* c, int depth, float factor) {
  constexpr int kColumns = 16;
  __m512 sum[R];
#pragma GCC unroll 12
  for (int i = 0; i < R; ++i)
    sum[i] = kAccumulate ? _mm512_loadu_ps(c + i * kColumns) : _mm512_setzero_ps();
  for (; depth > 0; --depth, a += step, b += kColumns) {
    const __m512bh y = (__m512bh)_mm512_loadu_si512(b);
#pragma GCC unroll 12
    for (int i = 0; i < R; ++i)
      sum[i] = _mm512_dpbf16_ps(sum[i], y, (__m512bh)_mm512_set1_epi32(a[i * row]));
  }
#pragma GCC unroll 12
  for (int i = 0; i < R; ++i)
    _mm512_storeu_ps(c + i * kColumns, _mm512_mul_ps(sum[i], _mm512_set1_ps(factor)));
}

template <bool kAccumulate, class Before>
inline void dot_product(const Pair* a, int64_t row, int64_t step, const Pair* b, float* c, int rows,
                        int depth, float factor, Before before) {
  auto block = [&]<int R>() {
    dot_micro<R, kAccumulate>(a, row, step, b, c, depth, factor);
    rows -= R;
    a += R * row;
    c += R * 16;
  };
  while (rows >= 12) {
    before();
    block.template operator()<12>();
  }
  before();
  if (rows >= 8) block.template operator()<8>();
  if (rows >= 4) block.template operator()<4>();
  if (rows >= 2) block.template operator()<2>();
  if (rows >= 1) block.template operator()<1>();
}
#endif

}  // namespace blockdraft::cpu
