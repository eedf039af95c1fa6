// fp8 of a cache as operands of bf16, which has all of its numbers: no scale, no rounding. By the
// device's own conversions: e4m3fnuz on gfx942, e4m3fn on gfx950.
#pragma once

#include "tile/cdna/mfma.h"

namespace blockdraft::cdna {

typedef uint32_t word2 __attribute__((ext_vector_type(2)));

// Two numbers as bf16, to nearest. On gfx942 ties round away from 0.
inline uint32_t packed(float low, float high) {
#if defined(__gfx950__)
  typedef float float2 __attribute__((ext_vector_type(2)));
  typedef __bf16 bfloat2 __attribute__((ext_vector_type(2)));
  return __builtin_bit_cast(uint32_t, __builtin_convertvector((float2{low, high}), bfloat2));
#else
  return __builtin_amdgcn_perm(__builtin_bit_cast(uint32_t, high) + 0x8000,
                               __builtin_bit_cast(uint32_t, low) + 0x8000, 0x07060302);
#endif
}

// So many codes.
template <int kCount>
struct Codes;
template <>
struct Codes<8> {
  typedef word2 Word;
};
template <>
struct Codes<4> {
  typedef uint32_t Word;
};
template <>
struct Codes<2> {
  typedef uint16_t Word;
};

// The two codes in a half of a word.
template <bool kHigh>
uint32_t decoded_pair(uint32_t four) {
#if defined(__gfx950__)
  const auto x = __builtin_amdgcn_cvt_scalef32_pk_bf16_fp8(four, 1.0f, kHigh);
  return __builtin_bit_cast(uint32_t, x);
#else
  const auto x = __builtin_amdgcn_cvt_pk_f32_fp8(four, kHigh);
  const float first = x[0], second = x[1];  // clang casts x[1] as if it were x[0]
  return __builtin_amdgcn_perm(__builtin_bit_cast(uint32_t, second),
                               __builtin_bit_cast(uint32_t, first), 0x07060302);
#endif
}

// Pairs of numbers.
inline void decode(uint32_t* out, uint16_t two) { out[0] = decoded_pair<false>(two); }
inline void decode(uint32_t* out, uint32_t four) {
  out[0] = decoded_pair<false>(four);
  out[1] = decoded_pair<true>(four);
}
inline void decode(uint32_t* out, word2 eight) {
  const uint32_t first = eight.x, second = eight.y;
  decode(out, first);
  decode(out + 2, second);
}

// Products by a scale are rounded.
template <class Word>
void decode(uint32_t* out, Word codes, float scale) {
  decode(out, codes);
#pragma unroll
  for (unsigned i = 0; i < sizeof codes / 2; ++i)
    out[i] = packed(__builtin_bit_cast(float, out[i] << 16) * scale,
                    __builtin_bit_cast(float, out[i] & 0xffff0000u) * scale);
}

// The first numbers of two pairs, or the second ones.
inline uint32_t paired(uint32_t a, uint32_t b, bool second) {
  return __builtin_amdgcn_perm(b, a, second ? 0x07060302 : 0x05040100);
}

}  // namespace blockdraft::cdna
