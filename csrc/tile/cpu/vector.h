// Vectors of a CPU: 8 floats (with AVX-512 also 16, `wide`), conversions, exponentials. Without
// AVX2 the compiler splits them.
#pragma once

#include <cstring>
#include <type_traits>

#ifdef __SSE2__
#include <immintrin.h>
#endif

#include "base/formats.h"
#include "base/numbers.h"

#if defined(__AVX512F__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // gcc 12 warns about its own header
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace blockdraft::cpu {

constexpr int kLanes = 8;

typedef float vec __attribute__((vector_size(32)));
typedef int32_t ivec __attribute__((vector_size(32)));
typedef uint16_t hvec __attribute__((vector_size(16)));
typedef uint32_t uvec __attribute__((vector_size(32)));

inline vec load(const float* p) {
  vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }
// Not vec{} + x, which the compiler must keep as an addition because of -0.
inline vec splat(float x) { return vec{x, x, x, x, x, x, x, x}; }

inline uvec widen(const uint16_t* p) {
#ifdef __AVX2__
  // gcc compiles __builtin_convertvector to five instructions here.
  return (uvec)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
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
  // Infinity and NaN keep an exponent of ones.
  uvec infinite = (uvec)(magnitude >= (0x7c00u << 13)) & 0x7f800000u;
  return (vec)((uvec)scaled | infinite | sign);
#endif
}

inline uvec widen(const uint8_t* p) {
#ifdef __AVX2__
  return (uvec)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
  uvec x;
  for (int j = 0; j < kLanes; ++j) x[j] = p[j];
  return x;
#endif
}

// Keeps subnormal numbers on this thread, whose caller may have them flushed to 0.
class Subnormals {
 public:
#ifdef __SSE2__
  Subnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ & ~(kFlushed | kReadAsZero)); }
  ~Subnormals() { _mm_setcsr(before_); }

 private:
  static constexpr uint32_t kFlushed = 0x8000, kReadAsZero = 0x40;
  const uint32_t before_;
#else
  Subnormals() {}
#endif
  Subnormals(const Subnormals&) = delete;
};

// What a thread has while it reads or writes numbers of this format, which are moved to the place of
// a float's fields if they have scales.
template <class C>
using SubnormalsOf = std::conditional_t<Format<C>::kScaled, Subnormals, int>;

// fp8 in the place of fp32's fields: the numbers times 2^(bias - 127), also if they are subnormal
// (see Subnormals).
inline vec fields_of(const uint8_t* codes) {
  return (vec)((uvec)((ivec)(widen(codes) << 24) >> 4) & 0x87f00000u);
}
inline vec fields_of(const uint8_t* codes, bool fnuz) {  // all ones for NaN
  const uvec x = widen(codes), nan = (uvec)(fnuz ? x == 0x80 : (x | 0x80) == 0xff);
  return (vec)((uvec)fields_of(codes) | nan);
}
constexpr float field_factor(bool fnuz) { return fnuz ? 0x1p119f : 0x1p120f; }
inline vec to_float(const e4m3fn* p) { return fields_of(&p->bits, false) * field_factor(false); }
inline vec to_float(const e4m3fnuz* p) { return fields_of(&p->bits, true) * field_factor(true); }
// What fields are multiplied by is lifted so far, so that products are normal numbers.
constexpr float kLift = 0x1p60f;

template <class C>
  requires Format<C>::kScaled
float value(C x) {
  return decoded(x);
}
inline float value(float x) { return x; }
inline float value(bf16 x) { return __builtin_bit_cast(float, uint32_t(x.bits) << 16); }
inline float value(fp16 x) {
#ifdef __F16C__
  return _cvtsh_ss(x.bits);
#else
  const fp16 lanes[kLanes] = {x};
  return to_float(lanes)[0];
#endif
}

template <class C>
  requires Format<C>::kScaled
void from_float(C* p, float x) {
  *p = encoded<C>(x);
}
inline void from_float(float* p, float x) { *p = x; }
inline void from_float(bf16* p, float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  // To nearest, ties to even.
  p->bits = x != x ? 0x7fc0 : uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
inline void from_float(fp16* p, float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  const uint32_t sign = (u >> 16) & 0x8000;
  u &= 0x7fffffff;
  if (u >= 0x7f800000)
    p->bits = uint16_t(sign | (u > 0x7f800000 ? 0x7e00 : 0x7c00));
  else if (u >= 0x477ff000)
    p->bits = uint16_t(sign | 0x7c00);  // rounds to infinity
  else if (u < 0x38800000) {            // subnormal: let the adder round
    float magnitude, shifted;
    std::memcpy(&magnitude, &u, 4);
    shifted = magnitude + 0.5f;
    std::memcpy(&u, &shifted, 4);
    p->bits = uint16_t(sign | (u - 0x3f000000));
  } else
    p->bits = uint16_t(sign | ((u - 0x38000000 + 0xfff + ((u >> 13) & 1)) >> 13));
}

template <class C>
  requires Format<C>::kScaled
void store(C* p, vec x) {
#pragma GCC unroll 8
  for (int j = 0; j < kLanes; ++j) from_float(p + j, x[j]);
}
inline void store(bf16* p, vec x) {
  const uvec bits = (uvec)x, rounded = bits + 0x7fff + ((bits >> 16) & 1);  // ties to even
  const uvec out = x == x ? rounded >> 16 : uvec{} + 0x7fc0;
#ifdef __AVX2__
  const __m256i packed = _mm256_packus_epi32((__m256i)out, (__m256i)out);
  const __m256i ordered = _mm256_permute4x64_epi64(packed, 0b1000);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(ordered));
#else
  for (int j = 0; j < kLanes; ++j) p[j].bits = uint16_t(out[j]);
#endif
}
inline void store(fp16* p, vec x) {
#ifdef __F16C__
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int j = 0; j < kLanes; ++j) from_float(p + j, x[j]);
#endif
}

// The sums of four vectors' lanes.
inline four sums_of(vec a, vec b, vec c, vec d) {
#ifdef __AVX__
  const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  return (four)_mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
#else
  return four{sum_of(a), sum_of(b), sum_of(c), sum_of(d)};
#endif
}

// Of eight.
inline vec sums_of(vec a, vec b, vec c, vec d, vec e, vec f, vec g, vec h) {
#ifdef __AVX__
  const __m256 first = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  const __m256 second = _mm256_hadd_ps(_mm256_hadd_ps(e, f), _mm256_hadd_ps(g, h));
  return _mm256_permute2f128_ps(first, second, 0x20) + _mm256_permute2f128_ps(first, second, 0x31);
#else
  const four first = sums_of(a, b, c, d), second = sums_of(e, f, g, h);
  return vec{first[0], first[1], first[2], first[3], second[0], second[1], second[2], second[3]};
#endif
}

#ifdef __AVX512F__
constexpr int kWide = 16;
#else
constexpr int kWide = kLanes;
#endif
typedef float wide __attribute__((vector_size(4 * kWide)));
typedef int32_t iwide __attribute__((vector_size(4 * kWide)));
typedef uint32_t uwide __attribute__((vector_size(4 * kWide)));

inline wide load_wide(const float* p) {
  wide v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store_wide(float* p, wide v) { std::memcpy(p, &v, sizeof v); }
inline wide splat_wide(float x) { return x - wide{}; }  // exact for -0 too, so it costs nothing

template <class T>
wide to_wide(const T* p) {
#ifdef __AVX512F__
  if constexpr (sizeof(T) == 4) return load_wide(p);
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  if constexpr (std::is_same_v<T, fp16>) return (wide)_mm512_cvtph_ps(half);
  return (wide)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
#else
  return to_float(p);
#endif
}

inline vec maximum(vec a, vec b) {  // b if either is NaN
#ifdef __AVX__
  return _mm256_max_ps(a, b);  // gcc does not recognise a > b ? a : b if one is a constant
#else
  return a > b ? a : b;
#endif
}

inline wide maximum_wide(wide a, wide b) {  // likewise
#ifdef __AVX512F__
  return (wide)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return maximum(a, b);
#endif
}

inline wide minimum_wide(wide a, wide b) {  // b if either is NaN
#if defined(__AVX512F__)
  return (wide)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
  return _mm256_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}

// One bit for each lane of a mask, the lowest for the first.
inline uint32_t lane_bits(iwide mask) {
#if defined(__AVX512F__)
  return _mm512_cmplt_epi32_mask((__m512i)mask, _mm512_setzero_si512());
#elif defined(__AVX__)
  return uint32_t(_mm256_movemask_ps((__m256)mask));
#else
  uint32_t bits = 0;
  for (int j = 0; j < kWide; ++j) bits |= uint32_t(mask[j] < 0) << j;
  return bits;
#endif
}

// For each set of lanes, their numbers in ascending order, a byte each.
struct Packing {
  uint64_t lanes[256];
  constexpr Packing() : lanes{} {
    for (int bits = 0; bits < 256; ++bits)
      for (uint64_t lane = 0, n = 0; lane < 8; ++lane)
        if (bits >> lane & 1) lanes[bits] |= lane << 8 * n++;
  }
};
inline constexpr Packing kPacking;

// Writes the lanes of these bits one after the other, and anything up to kWide floats. Returns how
// many there are.
inline int pack(float* out, wide x, uint32_t bits) {
#if defined(__AVX512F__)
  _mm512_storeu_ps(out, _mm512_maskz_compress_ps(__mmask16(bits), (__m512)x));
#elif defined(__AVX2__)
  const __m256i lanes = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(int64_t(kPacking.lanes[bits])));
  _mm256_storeu_ps(out, _mm256_permutevar8x32_ps((__m256)x, lanes));
#else
  int count = 0;
  for (int j = 0; j < kWide; ++j)
    if (bits >> j & 1) out[count++] = x[j];
#endif
  return __builtin_popcount(bits);
}

inline wide multiply_add(wide a, wide b, wide c) {
#if defined(__AVX512F__)
  return (wide)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  wide out;
  for (int j = 0; j < kWide; ++j) out[j] = __builtin_fmaf(a[j], b[j], c[j]);
  return out;
#endif
}

// 1.5 * 2^23 + 127: adding it rounds to an integer and leaves the biased exponent in the low bits.
constexpr float kMagic = 12583039.0f;

// 2^n of n + kMagic for -127 <= n <= 128: 0 and infinity at the ends.
template <class V>
V power_of(V shifted) {
  typedef decltype(shifted < shifted) Bits;  // as many integers
  return (V)((Bits)shifted << 23);
}

// 2^x to 3e-7 for -127 <= x < 128, for vectors of any length.
template <class V, class Power = decltype(power_of<V>)>
[[gnu::always_inline]] inline V exp2_within(V x, const Power& power = power_of<V>) {
  const V shifted = x + kMagic, r = x - (shifted - kMagic);
  V p = 1.32647273e-3f * r + 9.67151299e-3f;
  p = p * r + 5.55073358e-2f;
  p = p * r + 2.40222424e-1f;
  p = p * r + 6.93147004e-1f;
  p = p * r + 1.0f;
  return p * power(shifted);
}

// 2^x to 3e-7 for x < 128, exactly 1 for 0. From 128 on infinity with AVX-512, else undefined.
// Below -126 at most 2^-126; 0 for -inf; NaN for NaN.
[[gnu::always_inline]] inline wide exp2(wide x) {
#ifdef __AVX512F__
  // x - floor(x), 0 for infinity.
  const wide r = (wide)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  wide p = 1.86713005e-3f * r + 9.01703071e-3f;  // 2^r for 0 <= r < 1
  p = p * r + 5.57999127e-2f;
  p = p * r + 2.40164444e-1f;
  p = p * r + 6.93151295e-1f;
  p = p * r + 1.0f;
  return (wide)_mm512_scalef_ps((__m512)p, (__m512)x);  // p * 2^floor(x)
#else
  return exp2_within(maximum_wide(splat_wide(-127.0f), x));  // this order of operands keeps NaN
#endif
}

#ifdef __AVX512F__
// 1.5 * 2^18: adding it rounds to a multiple of 1 / 32 and leaves the number of 32nds in the low
// bits.
constexpr float kRootMagic = 393216.0f;

// 2^(i / 32).
alignas(64) constexpr float kRoots[32] = {
    1.00000000f, 1.02189715f, 1.04427378f, 1.06714040f, 1.09050773f, 1.11438674f, 1.13878863f,
    1.16372486f, 1.18920712f, 1.21524736f, 1.24185781f, 1.26905096f, 1.29683955f, 1.32523664f,
    1.35425555f, 1.38390988f, 1.41421356f, 1.44518081f, 1.47682615f, 1.50916443f, 1.54221083f,
    1.57598085f, 1.61049033f, 1.64575548f, 1.68179283f, 1.71861930f, 1.75625216f, 1.79470907f,
    1.83400809f, 1.87416763f, 1.91520656f, 1.95714412f};

inline wide root_at(const float* roots, wide shifted) {
  return (wide)_mm512_permutex2var_ps(_mm512_load_ps(roots), (__m512i)shifted,
                                      _mm512_load_ps(roots + 16));
}

// 2^(x * (factor + rest)) to 1e-7; infinity from 128 on; 0 for -inf, but infinity or NaN for some
// finite x below -1e26.
inline wide exp2_by_roots(wide x, float factor, float rest) {
  const wide shifted = x * factor + kRootMagic, near = shifted - kRootMagic;
  const wide r = x * rest + multiply_add(x, splat_wide(factor), -near);  // the fma is exact
  const wide root = root_at(kRoots, shifted);
  const wide growth = (2.4022695e-1f * r + 6.9315734e-1f) * r;  // 2^r - 1 for |r| <= 1 / 64
  // Times 2^floor(near); 0 for -inf, whatever r is.
  return (wide)_mm512_scalef_ps((__m512)(root * growth + root), (__m512)near);
}

// For |r| <= 1 / 64, 2^r is 0.2410994 * ((r + 1.4375)^2 + 2.0812600) to 1.3e-7, one multiply-add
// less than above. This table contains that factor: 0.2410994 * 2^(i / 32 - floor((i - 46) / 32)),
// where i is the number of 32nds in the fraction of near + 1.4375.
alignas(64) constexpr float kSquareRoots[32] = {
    0.96439766f, 0.98551522f, 1.00709519f, 1.02914771f, 1.05168311f, 1.07471197f, 1.09824510f,
    1.12229353f, 1.14686856f, 1.17198171f, 1.19764477f, 1.22386977f, 1.25066903f, 1.27805512f,
    0.65302044f, 0.66731973f, 0.68193213f, 0.69686449f, 0.71212384f, 0.72771732f, 0.74365226f,
    0.75993612f, 0.77657655f, 0.79358137f, 0.81095854f, 0.82871622f, 0.84686274f, 0.86540662f,
    0.88435655f, 0.90372144f, 0.92351036f, 0.94373261f};

// 2^(x * factor) to 4e-7; infinity or NaN from 128 on; 0 for -inf, but infinity or NaN for some
// finite x below -1e26. The compiler fuses the last product with the addition to a sum.
inline wide exp2_product(wide x, float factor) {
  const wide shifted = x * factor + kRootMagic;
  const wide near = shifted - (kRootMagic + 1.4375f);  // exact
  const wide t = multiply_add(x, splat_wide(factor), -near);
  const wide root = root_at(kSquareRoots, shifted);
  return root * (wide)_mm512_scalef_ps((__m512)(t * t + 2.0812600f), (__m512)near);
}
#endif

// 2^(x * (factor + rest)) to 1e-7 for -127 <= x * factor <= 128.
template <class Power>
[[gnu::always_inline]] inline wide exp2_within(wide x, float factor, float rest,
                                               const Power& power) {
  const wide shifted = multiply_add(x, splat_wide(factor), splat_wide(kMagic)),
             whole = shifted - kMagic;
  const wide r = multiply_add(x, splat_wide(rest), multiply_add(x, splat_wide(factor), -whole));
  wide p = 1.534581200e-4f * r + 1.339993122e-3f;
  p = p * r + 9.618488957e-3f;
  p = p * r + 5.550328777e-2f;
  p = p * r + 2.402264689e-1f;
  p = p * r + 6.931472057e-1f;
  p = p * r + 1.0f;
  return p * power(shifted);
}

// 2^(x * scale) to 1e-7, however large x or the scale; infinity from 128 on; otherwise as exp2.
[[gnu::always_inline]] inline wide exp2(wide x, double scale) {
  const float factor = float(scale), rest = float(scale - factor);
#ifdef __AVX512F__
  return exp2_by_roots(maximum_wide(splat_wide(-300 / factor), x), factor, rest);
#else
  x = minimum_wide(splat_wide(128 / factor), maximum_wide(splat_wide(-127 / factor), x));
  return exp2_within(x, factor, rest, power_of<wide>);
#endif
}

}  // namespace blockdraft::cpu
