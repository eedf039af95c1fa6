// Weights of a CPU's product that have no scales. They are widened in registers. A tile of 4 channels
// by up to 3 tokens (AVX-512: 6) runs at FMA speed for any number of tokens.
#pragma once

#include <algorithm>

#include "tile/cpu/order.h"

namespace blockdraft::cpu {

// 2 kWide elements are one *unit* of the depth: two vectors; of bf16 the even ones, then the odd
// ones. With AVX2 the instructions are spelled out, because the compiler would otherwise keep more
// than 16 registers alive.
constexpr int kUnit = 2 * kWide;
inline wide first_of(const float* p) { return load_wide(p); }
inline wide second_of(const float* p) { return load_wide(p + kWide); }
inline wide first_of(const fp16* p) { return to_wide(p); }
inline wide second_of(const fp16* p) { return to_wide(p + kWide); }
inline uwide pairs_of(const bf16* p) {
  uwide pairs;
  std::memcpy(&pairs, p, sizeof pairs);
  return pairs;
}
#if defined(__AVX2__) && !defined(__AVX512F__)
inline wide first_of(const bf16* p) {
  wide out;
  asm("vmovdqu %1, %0\n\tvpslld $16, %0, %0" : "=x"(out) : "m"(*(const bf16(*)[kUnit])p));
  return out;
}
inline wide second_of(const bf16* p) {
  alignas(32) static constexpr uint32_t kOdd[] = {0xffff0000u, 0xffff0000u, 0xffff0000u,
                                                  0xffff0000u, 0xffff0000u, 0xffff0000u,
                                                  0xffff0000u, 0xffff0000u};
  wide out;
  asm("vmovdqu %1, %0\n\tvpand %2, %0, %0" : "=x"(out) : "m"(*(const bf16(*)[kUnit])p), "m"(kOdd));
  return out;
}
inline void add_product(wide& sum, wide a, wide b) {
  asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
}
#else
inline wide first_of(const bf16* p) { return (wide)(pairs_of(p) << 16); }
inline wide second_of(const bf16* p) { return (wide)(pairs_of(p) & 0xffff0000u); }
inline void add_product(wide& sum, wide a, wide b) { sum = multiply_add(a, b, sum); }
#endif

// A unit at once, for tiles that leave registers free: half as many loads of bf16.
template <class T>
void load_unit(const T* p, wide& first, wide& second) {
  first = first_of(p);
  second = second_of(p);
}
inline void load_unit(const bf16* p, wide& first, wide& second) {
  const uwide pairs = pairs_of(p);
  first = (wide)(pairs << 16);
  second = (wide)(pairs & 0xffff0000u);
}

#ifdef __AVX512F__
inline four sums_of(wide a, wide b, wide c, wide d) {
  auto half = [](wide x) {
    return (vec)_mm256_add_ps(_mm512_castps512_ps256((__m512)x),
                              _mm512_extractf32x8_ps((__m512)x, 1));
  };
  return sums_of(half(a), half(b), half(c), half(d));
}
#endif

constexpr int kTileRows = 4;  // channels of a tile

// The next channels. The `tiles` tiles fetch their lines in turn, so that reading is spread.
template <class Row>
struct Fetch {
  Row rows[kTileRows];
  int tiles, turn;
};

template <class T>
struct PlainWeights {
  typedef const T* Row;
#ifdef __AVX512F__
  static constexpr int kRegisters = 32;
  static constexpr int kTileColumns = 6;  // 24 accumulators
#else
  static constexpr int kRegisters = 16;
  static constexpr int kTileColumns = 3;  // 12 accumulators
#endif
  static constexpr int kUnit = cpu::kUnit;
  static constexpr int kDepth = 2048 / sizeof(T);  // of a part, of which a tile stays in the L1

  static void stage_unit(const T* unit, float* out) {
    store_wide(out, first_of(unit));
    store_wide(out + kWide, second_of(unit));
  }
  // Numbers of more precision than T, in the order of T's.
  static void stage_unit(const float* unit, float* out)
    requires(!std::is_same_v<T, float>)
  {
    for (int j = 0; j < kUnit; j += 16) {
      eight a = load(unit + j), b = load(unit + j + 8);
      float *first = out + j, *second = first + 8;
      if constexpr (std::is_same_v<T, bf16>) {
        divide(a, b);
        first = out + j / 2;
        second = first + kWide;
      }
      store(first, a);
      store(second, b);
    }
  }

  template <int kWidth>
  __attribute__((noinline)) static void multiply(const Row (&own)[kTileRows],
                                                 const Fetch<Row>& fetch, const float* x, four* out,
                                                 int depth) {
    wide sums[kTileRows][kWidth];
    const T *w0 = own[0], *w1 = own[1], *w2 = own[2], *w3 = own[3];
#pragma GCC unroll 4
    for (int j = 0; j < kTileRows; ++j)
#pragma GCC unroll 8
      for (int c = 0; c < kWidth; ++c) sums[j][c] = wide{};
    int k = 0;
    int turn = fetch.turn;
    constexpr int kLine = 64 / sizeof(T);  // elements
    constexpr int kStep = kLine > kUnit ? kLine : kUnit;
    for (; k + kStep <= depth; k += kStep) {
      if (--turn == 0) {
        turn = fetch.tiles;
        for (const T* row : fetch.rows)
          for (int u = 0; u < kStep; u += kLine) __builtin_prefetch(row + k + u, 0, 2);
      }
#pragma GCC unroll 2
      for (int u = 0; u < kStep; u += kUnit, x += kWidth * kUnit)
        add_unit(w0 + k + u, w1 + k + u, w2 + k + u, w3 + k + u, x, sums);
    }
    for (; k + kUnit <= depth; k += kUnit, x += kWidth * kUnit)
      add_unit(w0 + k, w1 + k, w2 + k, w3 + k, x, sums);
    if (k < depth) {
      T padded[kTileRows][kUnit] = {};
      for (int j = 0; j < kTileRows; ++j) std::copy(own[j] + k, own[j] + depth, padded[j]);
      add_unit(padded[0], padded[1], padded[2], padded[3], x, sums);
    }
#pragma GCC unroll 8
    for (int c = 0; c < kWidth; ++c)
      out[c] = sums_of(sums[0][c], sums[1][c], sums[2][c], sums[3][c]);
  }

 private:
  template <int kWidth>
  __attribute__((always_inline)) static void add_unit(const T* w0, const T* w1, const T* w2,
                                                      const T* w3, const float* x,
                                                      wide (&sums)[kTileRows][kWidth]) {
    wide token[kWidth];
#pragma GCC unroll 8
    for (int c = 0; c < kWidth; ++c) token[c] = load_wide(x + c * kUnit);
    if constexpr ((kTileRows + 2) * kWidth + 3 <= kRegisters) {
      wide other[kWidth];
#pragma GCC unroll 8
      for (int c = 0; c < kWidth; ++c) other[c] = load_wide(x + c * kUnit + kWide);
      const T* const rows[] = {w0, w1, w2, w3};
#pragma GCC unroll 4
      for (int j = 0; j < kTileRows; ++j) {
        wide first, second;
        load_unit(rows[j], first, second);
        add_row(first, token, sums[j]);
        add_row(second, other, sums[j]);
      }
      return;
    }
    add_row(first_of(w0), token, sums[0]);
    add_row(first_of(w1), token, sums[1]);
    add_row(first_of(w2), token, sums[2]);
    add_row(first_of(w3), token, sums[3]);
#pragma GCC unroll 8
    for (int c = 0; c < kWidth; ++c) token[c] = load_wide(x + c * kUnit + kWide);
    add_row(second_of(w0), token, sums[0]);
    add_row(second_of(w1), token, sums[1]);
    add_row(second_of(w2), token, sums[2]);
    add_row(second_of(w3), token, sums[3]);
  }
  template <int kWidth>
  __attribute__((always_inline)) static void add_row(wide weight, const wide (&token)[kWidth],
                                                     wide (&sums)[kWidth]) {
#pragma GCC unroll 8
    for (int c = 0; c < kWidth; ++c) add_product(sums[c], weight, token[c]);
  }
};

}  // namespace blockdraft::cpu
