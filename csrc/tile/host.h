// The tile layer for a CPU: one wave, no barriers, fp32 micro-kernels of 6 (or 4) rows by 16 columns on vector extensions.
// 6 x 16 keeps 12 accumulators, 2 operand vectors and a broadcast in the 16 registers of AVX2; without AVX2 the compiler
// splits the vectors. Staged operands are fp32 in the order the products read them, so both products run at FMA speed
// whatever the input type.
#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include "tile.h"

namespace blockdraft::host {

constexpr int kLanes = 8, kColumns = 16, kKeys = 96;

typedef float vec __attribute__((vector_size(32)));
typedef int32_t ivec __attribute__((vector_size(32)));
typedef uint16_t hvec __attribute__((vector_size(16)));
typedef uint32_t uvec __attribute__((vector_size(32)));

inline vec load(const float* p) { vec v; std::memcpy(&v, p, sizeof v); return v; }
inline void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }
inline vec splat(float x) { return vec{x, x, x, x, x, x, x, x}; }  // not vec{} + x: that is an addition, for the sign of zero
inline vec maximum(vec a, vec b) { return a > b ? a : b; }

inline uvec widen(const uint16_t* p) {
  hvec h;
  std::memcpy(&h, p, sizeof h);
  return __builtin_convertvector(h, uvec);
}

inline vec to_float(const float* p) { return load(p); }
inline vec to_float(const bf16* p) { return (vec)(widen(&p->bits) << 16); }
inline vec to_float(const fp16* p) {
  uvec h = widen(&p->bits), magnitude = (h & 0x7fff) << 13, sign = (h & 0x8000) << 16;
  vec scaled = (vec)magnitude * 0x1p112f;  // exponent bias 15 -> 127, subnormals included
  uvec infinite = (uvec)(magnitude >= (0x7c00u << 13)) & 0x7f800000u;  // infinity and NaN keep an all-ones exponent
  return (vec)((uvec)scaled | infinite | sign);
}

inline void from_float(float* p, float x) { *p = x; }
inline void from_float(bf16* p, float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  p->bits = x != x ? 0x7fc0 : uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);  // nearest, ties to even
}
inline void from_float(fp16* p, float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  const uint32_t sign = (u >> 16) & 0x8000;
  u &= 0x7fffffff;
  if (u >= 0x7f800000) p->bits = uint16_t(sign | (u > 0x7f800000 ? 0x7e00 : 0x7c00));
  else if (u >= 0x477ff000) p->bits = uint16_t(sign | 0x7c00);  // rounds to infinity
  else if (u < 0x38800000) {  // subnormal: let the adder round
    float magnitude, shifted;
    std::memcpy(&magnitude, &u, 4);
    shifted = magnitude + 0.5f;
    std::memcpy(&u, &shifted, 4);
    p->bits = uint16_t(sign | (u - 0x3f000000));
  } else p->bits = uint16_t(sign | ((u - 0x38000000 + 0xfff + ((u >> 13) & 1)) >> 13));
}

// 2^x to 2 ulp for x <= 0; 0 below -126.
inline vec exp2(vec x) {
  const vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  x = maximum(x, splat(-127.0f));
  vec shifted = x + magic, r = x - (shifted - magic);
  vec p = 1.5403530e-4f * r + 1.3333558e-3f;
  p = p * r + 9.6181291e-3f;
  p = p * r + 5.5504109e-2f;
  p = p * r + 2.4022651e-1f;
  p = p * r + 6.9314718e-1f;
  p = p * r + 1.0f;
  ivec power = ((ivec)shifted - (ivec)magic + 127) << 23;
  return p * (vec)power;
}

// c[i][0..16) (+)= sum over k < depth of a[i * row + k * step] * b[k][0..16), for i < R.
template <int R, bool kAccumulate>
__attribute__((noinline)) void micro(const float* a, int64_t row, int64_t step, const float* b, float* c, int depth) {
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

// `rows` output rows in blocks of six, then four (8 is 4 + 4, not 6 + 1 + 1), then one.
template <bool kAccumulate>
inline void product(const float* a, int64_t row, int64_t step, const float* b, float* c, int rows, int depth) {
  const int sixes = 6 * (rows / 6 - (rows % 6 >= 2 && rows % 6 < 4 && rows >= 8));
  int i = 0;
  for (; i < sixes; i += 6) micro<6, kAccumulate>(a + i * row, row, step, b, c + i * kColumns, depth);
  for (; rows - i >= 4; i += 4) micro<4, kAccumulate>(a + i * row, row, step, b, c + i * kColumns, depth);
  for (; i < rows; ++i) micro<1, kAccumulate>(a + i * row, row, step, b, c + i * kColumns, depth);
}

struct Panel {
  float* queries;  // [head_dim][kColumns], scaled
  float* output;   // [head_dim][kColumns]
  float* running;  // maximum [kColumns], sum [kColumns]
  int head_dim;
};

struct Scratch {
  float *keys, *values, *scores, *columns;
  int head_dim;

  static int64_t floats(int panels, int head_dim) {
    return 2 * int64_t(kKeys) * head_dim + kKeys * kColumns + int64_t(panels) * (2 * head_dim + 2) * kColumns;
  }
  Scratch(float* memory, int head_dim) : head_dim(head_dim) {
    keys = memory;
    values = keys + kKeys * head_dim;
    scores = values + kKeys * head_dim;
    columns = scores + kKeys * kColumns;
  }
  Panel panel(int i) const {
    float* base = columns + int64_t(i) * (2 * head_dim + 2) * kColumns;
    return {base, base + head_dim * kColumns, base + 2 * head_dim * kColumns, head_dim};
  }
};

template <class T>
using PerPanel = std::vector<T>;

constexpr float kLowest = -1e30f;  // below every score, and finite: (-inf) - kLowest is -inf, not NaN

template <class T>
inline void stage_column(const Panel& panel, int c, const T* src, float scale) {
  for (int d = 0; d < panel.head_dim; d += kLanes) {
    const vec x = to_float(src + d) * scale;
    for (int j = 0; j < kLanes; ++j) panel.queries[(d + j) * kColumns + c] = x[j];
  }
}

inline void clear_columns(const Panel& panel, int from) {
  for (int d = 0; d < panel.head_dim; ++d)
    for (int c = from; c < kColumns; ++c) panel.queries[d * kColumns + c] = 0;
}

inline void begin(const Panel& panel) {
  std::memset(panel.output, 0, sizeof(float) * panel.head_dim * kColumns);
  for (int c = 0; c < kColumns; ++c) panel.running[c] = kLowest, panel.running[kColumns + c] = 0;
}

template <class Row>
inline void stage_rows(const Scratch& scratch, float* operand, Row row, int count) {
  for (int i = 0; i < count; ++i) {
    const auto* src = row(i);
    for (int d = 0; d < scratch.head_dim; d += kLanes) store(operand + i * scratch.head_dim + d, to_float(src + d));
  }
}

template <class T>
inline void prefetch(const T* row, int n) {
  for (int byte = 0; byte < n * int(sizeof(T)); byte += 64) __builtin_prefetch(reinterpret_cast<const char*>(row) + byte, 0, 2);
}

inline void scores(const Panel& panel, const Scratch& scratch, int count) {
  product<false>(scratch.keys, scratch.head_dim, 1, panel.queries, scratch.scores, count, panel.head_dim);
}

template <class Visible>
inline void mask(const Scratch& scratch, Visible visible, int count) {
  for (int i = 0; i < count; ++i)
    for (int c = 0; c < kColumns; ++c)
      if (!visible(i, c)) scratch.scores[i * kColumns + c] = -INFINITY;
}

inline void absorb(const Panel& panel, const Scratch& scratch, int count) {
  float* s = scratch.scores;
  bool grown = false;
  for (int half = 0; half < kColumns; half += kLanes) {
    const vec before = load(panel.running + half);
    vec top = before;
    for (int i = 0; i < count; ++i) top = maximum(top, load(s + i * kColumns + half));
    vec sum{};
    for (int i = 0; i < count; ++i) {
      const vec p = exp2(load(s + i * kColumns + half) - top);
      store(s + i * kColumns + half, p);
      sum += p;
    }
    const vec shrink = exp2(before - top);
    store(panel.running + half, top);
    store(panel.running + kColumns + half, load(panel.running + kColumns + half) * shrink + sum);
    const ivec changed = before < top;
    for (int j = 0; j < kLanes; ++j) grown |= changed[j] != 0;
    if (grown)
      for (int d = 0; d < panel.head_dim; ++d) store(panel.output + d * kColumns + half, load(panel.output + d * kColumns + half) * shrink);
  }
  product<true>(scratch.values, 1, scratch.head_dim, s, panel.output, panel.head_dim, count);
}

}  // namespace blockdraft::host
