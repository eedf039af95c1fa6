// Micro-kernels of a CPU: products of a few rows by 16 columns. 6 x 16 keeps 12 accumulators, 2
// operand vectors and a broadcast in the 16 registers of AVX2; without AVX2 the compiler splits the
// vectors. Operands are fp32, in the order in which they are read; or bf16, 12 rows at a time, if
// the CPU has bf16 dot products.
#pragma once

#include "tile/cpu/vector.h"

namespace blockdraft::cpu {

constexpr int kColumns = 16;

// c[i][0..16) (+)= sum over k < depth of a[i * row + k * step] * b[k][0..16), for i < R.
template <int R, bool kAccumulate>
__attribute__((noinline)) void micro(const float* a, int64_t row, int64_t step, const float* b,
                                     float* c, int depth) {
  vec low[R], high[R];
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
    low[i] = kAccumulate ? load(c + i * kColumns) : vec{};
    high[i] = kAccumulate ? load(c + i * kColumns + kLanes) : vec{};
  }
  for (; depth > 0; --depth, a += step, b += kColumns) {
    const vec b0 = load(b), b1 = load(b + kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const vec x = splat(a[i * row]);
      low[i] += x * b0;
      high[i] += x * b1;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
    store(c + i * kColumns, low[i]);
    store(c + i * kColumns + kLanes, high[i]);
  }
}

// `rows` output rows, in blocks of six or fewer. Calls before(), which must be cheap, between
// blocks.
template <bool kAccumulate, class Before>
inline void product(const float* a, int64_t row, int64_t step, const float* b, float* c, int rows,
                    int depth, Before before) {
  auto block = [&]<int R>() {
    micro<R, kAccumulate>(a, row, step, b, c, depth);
    rows -= R;
    a += R * row;
    c += R * kColumns;
  };
  while (rows == 6 || rows > 8) {
    before();
    block.template operator()<6>();
  }
  before();
  if (rows > 6) block.template operator()<4>();  // 4 + 3 rows stall less than 6 + 1
  switch (rows) {
    case 5:
      return micro<5, kAccumulate>(a, row, step, b, c, depth);
    case 4:
      return micro<4, kAccumulate>(a, row, step, b, c, depth);
    case 3:
      return micro<3, kAccumulate>(a, row, step, b, c, depth);
    case 2:
      return micro<2, kAccumulate>(a, row, step, b, c, depth);
    case 1:
      return micro<1, kAccumulate>(a, row, step, b, c, depth);
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
    c += R * kColumns;
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
