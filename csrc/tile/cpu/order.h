// The order in which a CPU reads the numbers of a row where its order does not matter: that in which
// they are cheap to widen, two vectors at a time. What is multiplied with them is arranged once.
#pragma once

#include "tile/cpu/vector.h"

namespace blockdraft::cpu {

typedef uint8_t bytes __attribute__((vector_size(32)));
typedef uint16_t words __attribute__((vector_size(32)));
typedef int16_t signed_words __attribute__((vector_size(32)));

// Codes of either fp8, none of which is NaN.
typedef uint8_t code;

// (a, b) := their even elements, their odd elements.
inline void divide(vec& a, vec& b) {
#ifdef __AVX2__
  const __m256d even = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88));
  const __m256d odd = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0xdd));
  a = _mm256_castpd_ps(_mm256_permute4x64_pd(even, 0xd8));
  b = _mm256_castpd_ps(_mm256_permute4x64_pd(odd, 0xd8));
#else
  const vec even = {a[0], a[2], a[4], a[6], b[0], b[2], b[4], b[6]};
  b = vec{a[1], a[3], a[5], a[7], b[1], b[3], b[5], b[7]};
  a = even;
#endif
}
// Its opposite.
inline void interleave(vec& a, vec& b) {
#ifdef __AVX2__
  const vec low = _mm256_unpacklo_ps(a, b), high = _mm256_unpackhi_ps(a, b);
  a = _mm256_permute2f128_ps(low, high, 0x20);
  b = _mm256_permute2f128_ps(low, high, 0x31);
#else
  const vec first = {a[0], b[0], a[1], b[1], a[2], b[2], a[3], b[3]};
  b = vec{a[4], b[4], a[5], b[5], a[6], b[6], a[7], b[7]};
  a = first;
#endif
}

// That of C: units of kVectors vectors, after which up to kVectors - 1 are as they lie.
template <class C>
struct Order {
  static constexpr int kVectors = 2;
  static void arrange(vec*) {}
  static void restore(vec*) {}
};
template <>
struct Order<bf16> {
  static constexpr int kVectors = 2;
  static void arrange(vec* x) { divide(x[0], x[1]); }
  static void restore(vec* x) { interleave(x[0], x[1]); }
};
// Of four bytes the numbers 1, 3, 0, 2.
template <>
struct Order<code> {
  static constexpr int kVectors = 4;
  static void arrange(vec* x) {
    divide(x[0], x[1]);
    divide(x[2], x[3]);
    divide(x[0], x[2]);
    divide(x[1], x[3]);
    const vec x0 = x[0], x2 = x[2];
    x[0] = x[1], x[1] = x[3], x[2] = x0, x[3] = x2;
  }
  static void restore(vec* x) {
    const vec x1 = x[0], x3 = x[1];
    x[0] = x[2], x[2] = x[3], x[1] = x1, x[3] = x3;
    interleave(x[0], x[2]);
    interleave(x[1], x[3]);
    interleave(x[0], x[1]);
    interleave(x[2], x[3]);
  }
};

// 0xff where a code is NaN, less elsewhere.
template <class C>
bytes nan_marks(bytes x) {
  return std::is_same_v<C, e4m3fnuz> ? x ^ 0x7f : x | 0x80;
}

// marks := the most of it and those of two rows of n codes, a multiple of 8.
template <class C>
void mark_nan(bytes& marks, const C* a, const C* b, int n) {
  auto take = [&](bytes x) {
    x = nan_marks<C>(x);
    marks = marks > x ? marks : x;
  };
  bytes x, y;
  int i = 0;
  for (; i + int(sizeof x) <= n; i += sizeof x) {
    std::memcpy(&x, a + i, sizeof x);
    std::memcpy(&y, b + i, sizeof y);
    take(x), take(y);
  }
  x = y = bytes{};
  for (; i < n; i += 8) {
    std::memcpy(&x, a + i, 8);
    std::memcpy(&y, b + i, 8);
    take(x), take(y);
  }
}
inline bool any_nan(bytes marks) {
  bool any = false;
  for (size_t i = 0; i < sizeof marks; ++i) any |= marks[i] == 0xff;
  return any;
}

template <class C>
constexpr bool kIsCode = sizeof(C) == 1;

// Vectors 2 kPair and 2 kPair + 1 of a unit of C, in the order of O. fp8 is not yet multiplied.
template <class O, int kPair, class C>
[[gnu::always_inline]] inline void read_pair(const C* unit, vec& a, vec& b) {
  if constexpr (kIsCode<C>) {
    static_assert(kIsCode<O>);
    const auto moved = [](auto x) { return kPair ? (words)x << 8 : (words)x; };
    words x;
    std::memcpy(&x, unit, sizeof x);
    const uvec fields = (uvec)((signed_words)moved(x) >> 4);
    a = (vec)(fields << 16 & 0x87f00000u);
    b = (vec)(fields & 0x87f00000u);
    if constexpr (!std::is_same_v<C, code>) {
      bytes codes;
      std::memcpy(&codes, unit, sizeof codes);
      const uvec nan = (uvec)moved(nan_marks<C>(codes) == 0xff);
      a = (vec)((uvec)a | (uvec)((ivec)(nan << 16) >> 31));
      b = (vec)((uvec)b | (uvec)((ivec)nan >> 31));
    }
  } else if constexpr (std::is_same_v<O, C> && std::is_same_v<C, bf16>) {
    uvec pairs;
    std::memcpy(&pairs, unit, sizeof pairs);
    a = (vec)(pairs << 16);
    b = (vec)(pairs & 0xffff0000u);
  } else {
    vec x[Order<O>::kVectors];
    for (int v = 0; v < Order<O>::kVectors; ++v) x[v] = to_float(unit + v * kLanes);
    Order<O>::arrange(x);
    a = x[2 * kPair];
    b = x[2 * kPair + 1];
  }
}

// Eight numbers as they lie; fp8 is not yet multiplied.
template <class C>
vec read_eight(const C* p) {
  if constexpr (std::is_same_v<C, code>)
    return fields_of(p);
  else if constexpr (kIsCode<C>)
    return fields_of(&p->bits, std::is_same_v<C, e4m3fnuz>);
  else
    return to_float(p);
}

}  // namespace blockdraft::cpu
