// The tile layer for a CPU: one wave, no barriers, fp32 micro-kernels of 6 (or 4) rows by 16 columns on vector extensions.
// 6 x 16 keeps 12 accumulators, 2 operand vectors and a broadcast in the 16 registers of AVX2; without AVX2 the compiler
// splits the vectors. Staged operands are fp32 in the order the products read them, so both products run at FMA speed
// whatever the input type.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "tile.h"

namespace blockdraft::host {

constexpr int kLanes = 8, kColumns = 16;

typedef float vec __attribute__((vector_size(32)));
typedef int32_t ivec __attribute__((vector_size(32)));
typedef uint16_t hvec __attribute__((vector_size(16)));
typedef uint32_t uvec __attribute__((vector_size(32)));

inline vec load(const float* p) { vec v; std::memcpy(&v, p, sizeof v); return v; }
inline void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }
inline vec splat(float x) { return vec{x, x, x, x, x, x, x, x}; }  // not vec{} + x: that is an addition, for the sign of zero
inline vec maximum(vec a, vec b) { return a > b ? a : b; }

inline uvec widen(const uint16_t* p) {
#ifdef __AVX2__
  return (uvec)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));  // gcc makes five of convertvector
#else
  hvec h;
  std::memcpy(&h, p, sizeof h);
  return __builtin_convertvector(h, uvec);
#endif
}

inline vec to_float(const float* p) { return load(p); }
inline vec to_float(const bf16* p) { return (vec)(widen(&p->bits) << 16); }
inline vec to_float(const fp16* p) {
#ifdef __F16C__
  return (vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  uvec h = widen(&p->bits), magnitude = (h & 0x7fff) << 13, sign = (h & 0x8000) << 16;
  vec scaled = (vec)magnitude * 0x1p112f;  // exponent bias 15 -> 127, subnormals included
  uvec infinite = (uvec)(magnitude >= (0x7c00u << 13)) & 0x7f800000u;  // infinity and NaN keep an all-ones exponent
  return (vec)((uvec)scaled | infinite | sign);
#endif
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

// 2^x to 3e-7 relative for x <= 0; 0 below -126. (A minimax polynomial over -1/2 .. 1/2; sums divide the errors out.)
inline vec exp2(vec x) {
  const vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  x = maximum(splat(-127.0f), x);  // this way round NaN stays NaN
  const vec shifted = x + magic, r = x - (shifted - magic);
  vec p = 1.3276472e-3f * r + 9.6755415e-3f;
  p = p * r + 5.5507133e-2f;
  p = p * r + 2.4022120e-1f;
  p = p * r + 6.9314697e-1f;
  p = p * r + 1.0000001f;
  const ivec power = ((ivec)shifted << 23) + (127 << 23);  // the magic number's bits are shifted out
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

// `rows` output rows: blocks of six, then the rest.
template <bool kAccumulate>
inline void product(const float* a, int64_t row, int64_t step, const float* b, float* c, int rows, int depth) {
  for (; rows >= 6; rows -= 6, a += 6 * row, c += 6 * kColumns) micro<6, kAccumulate>(a, row, step, b, c, depth);
  switch (rows) {
    case 5: return micro<5, kAccumulate>(a, row, step, b, c, depth);
    case 4: return micro<4, kAccumulate>(a, row, step, b, c, depth);
    case 3: return micro<3, kAccumulate>(a, row, step, b, c, depth);
    case 2: return micro<2, kAccumulate>(a, row, step, b, c, depth);
    case 1: return micro<1, kAccumulate>(a, row, step, b, c, depth);
  }
}

class Group {
  static constexpr int kBlock = 128;  // of a sum that stays in the L1

 public:
  template <class F>
  void each(int n, F f) const {
    for (int i = 0; i < n; ++i) f(i);
  }
  template <class F>
  void each(int m, int n, F f) const {
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < n; ++j) f(i, j);
  }
  template <class Weight, class Term, class F>
  void combine(int n, int terms, Weight weight, Term term, F f) const {
    float total[kBlock];
    for (int first = 0; first < n; first += kBlock) {
      const int count = least(n - first, kBlock);
      std::fill(total, total + count, 0.0f);
      for (int s = 0; s < terms; ++s) {
        const float factor = weight(s);
        const float* values = term(s) + first;
        for (int i = 0; i < count; ++i) total[i] += factor * values[i];
      }
      for (int i = 0; i < count; ++i) f(first + i, total[i]);
    }
  }
  static bool leader() { return true; }
  static void barrier() {}
  static int uniform(int x) { return x; }
  template <class T>
  static void store(T* p, float x) { from_float(p, x); }
};

template <class T, class X>
class Tile : public Group {
 public:
  static constexpr int kKeys = 192, kBuffers = 1;
  static constexpr int kValuePad = 16;  // floats: with a power of two between rows, a column of values would fill few cache sets
  static constexpr int kGroupColumns = 544;  // 136 rows of a group of 4, whose operands stay in the L2

  struct Panel {
    float* queries;  // [head_dim][kColumns], scaled
    float* output;   // [head_dim][kColumns]
    float* running;  // maximum [kColumns], sum [kColumns]
    int count;
    X x[kColumns];

    template <class F>
    bool any(F f) const {
      for (int c = 0; c < count; ++c)
        if (f(x[c])) return true;
      return false;
    }
  };

  // `memory`: floats(columns, head_dim) of them, aligned to a cache line.
  static int64_t floats(int columns, int head_dim) {
    return int64_t(kKeys) * (2 * head_dim + kValuePad + kColumns) + int64_t(ceil_div(columns, kColumns)) * (2 * head_dim + 2) * kColumns;
  }
  Tile(float* memory, int head_dim) : head_dim_(head_dim) {
    keys_ = memory;
    values_ = keys_ + kKeys * head_dim;
    scores_ = values_ + kKeys * (head_dim + kValuePad);
    columns_ = scores_ + kKeys * kColumns;
  }

  template <class Describe, class Query>
  void open(int n, Describe x, Query query, float scale) {
    panels_.resize(ceil_div(n, kColumns));
    for (int p = 0; p < int(panels_.size()); ++p) {
      Panel& panel = panels_[p];
      panel.queries = columns_ + int64_t(p) * (2 * head_dim_ + 2) * kColumns;
      panel.output = panel.queries + head_dim_ * kColumns;
      panel.running = panel.output + head_dim_ * kColumns;
      panel.count = least(n - p * kColumns, kColumns);
      std::memset(panel.output, 0, sizeof(float) * head_dim_ * kColumns);
      for (int c = 0; c < kColumns; ++c) {
        panel.running[c] = kLowest, panel.running[kColumns + c] = 0;
        if (c < panel.count) panel.x[c] = x(p * kColumns + c);
        stage_query(panel, c, c < panel.count ? query(panel.x[c]) : nullptr, scale);
      }
    }
  }

  template <class Place>
  void locate(Place place, int n) {
    for (int i = 0; i < n; ++i) places_[i] = place(i);
  }

  template <class Key, class Value>
  void load(Key key, Value value, int n) {  // deposit reads them; until then each_panel has them prefetched
    loaded_ = n;
    for (int i = 0; i < loaded_; ++i) key_rows_[i] = key(places_[i], i), value_rows_[i] = value(places_[i], i);
  }

  void deposit(int n) {
    staged_ = n;
    stage(keys_, head_dim_, key_rows_);
    stage(values_, head_dim_ + kValuePad, value_rows_);
  }

  template <class F>
  void each_panel(F f) {
    const int panels = int(panels_.size());
    for (int p = 0; p < panels; ++p) {
      for (int i = loaded_ * p / panels; i < loaded_ * (p + 1) / panels; ++i) prefetch<2>(key_rows_[i]), prefetch<2>(value_rows_[i]);
      f(panels_[p]);
    }
  }

  void scores(const Panel& panel) {
    product<false>(keys_, head_dim_, 1, panel.queries, scores_, staged_, head_dim_);
  }

  template <class F>
  void each_score(const Panel& panel, F f) const {
    for (int i = 0; i < staged_; ++i)
      for (int c = 0; c < panel.count; ++c) f(i, panel.x[c], scores_[i * kColumns + c]);
  }

  template <class Visible>
  void mask(const Panel& panel, Visible visible) {
    for (int c = 0; c < panel.count; ++c) {
      const auto seen = visible(panel.x[c]);
      for (int i = 0; i < staged_; ++i)
        if (i < seen.from || i >= seen.to) scores_[i * kColumns + c] = -INFINITY;
    }
  }

  void absorb(Panel& panel) {
    float* const s = scores_;
    const int n = staged_, dim = head_dim_;
    bool grown = false;
    for (int half = 0; half < kColumns; half += kLanes) {
      float* const column = s + half;
      const vec before = host::load(panel.running + half);
      vec top = before, other = before, sum{}, odd{};  // two of each: independent chains
      int i = 0;
      for (; i + 1 < n; i += 2) {
        top = maximum(top, host::load(column + i * kColumns));
        other = maximum(other, host::load(column + (i + 1) * kColumns));
      }
      if (i < n) top = maximum(top, host::load(column + i * kColumns));
      top = maximum(top, other);
      for (i = 0; i + 1 < n; i += 2) {
        const vec p = exp2(host::load(column + i * kColumns) - top), q = exp2(host::load(column + (i + 1) * kColumns) - top);
        host::store(column + i * kColumns, p);
        host::store(column + (i + 1) * kColumns, q);
        sum += p, odd += q;
      }
      if (i < n) {
        const vec p = exp2(host::load(column + i * kColumns) - top);
        host::store(column + i * kColumns, p);
        sum += p;
      }
      const vec shrink = exp2(before - top);
      host::store(panel.running + half, top);
      host::store(panel.running + kColumns + half, host::load(panel.running + kColumns + half) * shrink + (sum + odd));
      const ivec changed = before < top;
      for (int j = 0; j < kLanes; ++j) grown |= changed[j] != 0;
      if (grown)
        for (int d = 0; d < dim; ++d) {
          float* o = panel.output + d * kColumns + half;
          host::store(o, host::load(o) * shrink);
        }
    }
    product<true>(values_, 1, dim + kValuePad, s, panel.output, dim, n);
  }

  struct Output {
    const float* column;
    int head_dim;
    static bool leader() { return true; }
    template <class D>
    void store(D* p, float scale) const {
      for (int d = 0; d < head_dim; ++d) from_float(p + d, scale == 0 ? 0.0f : scale * column[d * kColumns]);
    }
  };

  template <class F>
  void close(F f) {
    for (const Panel& panel : panels_)
      for (int c = 0; c < panel.count; ++c)
        f(panel.x[c], panel.running[c], panel.running[kColumns + c], Output{panel.output + c, head_dim_});
  }

 private:
  void stage(float* operand, int stride, const T* const* rows) const {
    const int dim = head_dim_, n = staged_;
    for (int i = 0; i < n; ++i) {
      const T* src = rows[i];
      if (i + 4 < n) prefetch<3>(rows[i + 4]);
      for (int d = 0; d < dim; d += kLanes) host::store(operand + i * stride + d, to_float(src + d));
    }
  }

  void stage_query(const Panel& panel, int c, const T* src, float scale) const {
    for (int d = 0; d < head_dim_; d += kLanes) {
      const vec x = src ? to_float(src + d) * scale : vec{};
      for (int j = 0; j < kLanes; ++j) panel.queries[(d + j) * kColumns + c] = x[j];
    }
  }

  template <int kLocality>  // 3: into the L1, 2: the L2
  void prefetch(const T* row) const {
    for (int byte = 0; byte < head_dim_ * int(sizeof(T)); byte += 64)
      __builtin_prefetch(reinterpret_cast<const char*>(row) + byte, 0, kLocality);
  }

  float *keys_, *values_, *scores_, *columns_;
  int head_dim_, loaded_ = 0, staged_ = 0, places_[kKeys];
  const T *key_rows_[kKeys], *value_rows_[kKeys];
  std::vector<Panel> panels_;
};

}  // namespace blockdraft::host
