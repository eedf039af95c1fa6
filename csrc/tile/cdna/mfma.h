// Matrix instructions of CDNA. An operand fragment has 16 bytes, which one (16 bit on gfx950), two
// (16 bit on gfx942) or four (fp32) MFMAs consume.
#pragma once

#include "base/numbers.h"

namespace blockdraft::cdna {

typedef float acc16 __attribute__((ext_vector_type(16)));
typedef float float4 __attribute__((ext_vector_type(4)));
typedef float4 acc4;
typedef short short4 __attribute__((ext_vector_type(4)));
typedef short short8 __attribute__((ext_vector_type(8)));
typedef _Float16 half4 __attribute__((ext_vector_type(4)));
typedef _Float16 half8 __attribute__((ext_vector_type(8)));
typedef __bf16 bfloat8 __attribute__((ext_vector_type(8)));
typedef uint32_t word4 __attribute__((ext_vector_type(4)));

// For an element type: its fragment, C + A B for one, and the packing of scores into one.
template <class T>
struct Mma;

template <>
struct Mma<float> {
  typedef float4 Fragment;
  typedef float Pair __attribute__((ext_vector_type(2)));
  static acc16 multiply(float4 a, float4 b, acc16 c) {
#pragma unroll
    for (int i = 0; i < 4; ++i) c = __builtin_amdgcn_mfma_f32_32x32x2f32(a[i], b[i], c, 0, 0, 0);
    return c;
  }
  static acc4 multiply(float4 a, float4 b, acc4 c) {
#pragma unroll
    for (int i = 0; i < 4; ++i) c = __builtin_amdgcn_mfma_f32_16x16x4f32(a[i], b[i], c, 0, 0, 0);
    return c;
  }
  static float4 pack(acc16 p, int first) {
    return float4{p[first], p[first + 1], p[first + 2], p[first + 3]};
  }
};

template <>
struct Mma<bf16> {
  typedef short8 Fragment;
  typedef short Pair __attribute__((ext_vector_type(2)));
  static acc16 multiply(short8 a, short8 b, acc16 c) {
#if defined(__gfx950__)
    return __builtin_amdgcn_mfma_f32_32x32x16_bf16(__builtin_bit_cast(bfloat8, a),
                                                   __builtin_bit_cast(bfloat8, b), c, 0, 0, 0);
#else
    c = __builtin_amdgcn_mfma_f32_32x32x8bf16_1k(a.lo, b.lo, c, 0, 0, 0);
    return __builtin_amdgcn_mfma_f32_32x32x8bf16_1k(a.hi, b.hi, c, 0, 0, 0);
#endif
  }
  static acc4 multiply(short8 a, short8 b, acc4 c) {
#if defined(__gfx950__)
    return __builtin_amdgcn_mfma_f32_16x16x32_bf16(__builtin_bit_cast(bfloat8, a),
                                                   __builtin_bit_cast(bfloat8, b), c, 0, 0, 0);
#else
    c = __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(a.lo, b.lo, c, 0, 0, 0);
    return __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(a.hi, b.hi, c, 0, 0, 0);
#endif
  }
  // high + low is x to 16 bits.
  static void split(const float* x, Fragment& high, Fragment& low) {
    word4 first, second;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t whole[2], rest[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float own = x[2 * i + j];
        whole[j] = __builtin_bit_cast(uint32_t, own) & 0xffff0000u;
        rest[j] = __builtin_bit_cast(uint32_t, own - __builtin_bit_cast(float, whole[j]));
      }
      first[i] = __builtin_amdgcn_perm(whole[1], whole[0], 0x07060302);
      second[i] = __builtin_amdgcn_perm(rest[1], rest[0], 0x07060302);
    }
    high = __builtin_bit_cast(short8, first);
    low = __builtin_bit_cast(short8, second);
  }
  // For values >= 0. Rounds to nearest; on gfx942 ties round up, which saves three of four
  // instructions.
  static short8 pack(acc16 p, int first) {
    word4 out;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#if defined(__gfx950__)
      typedef float float2 __attribute__((ext_vector_type(2)));
      typedef __bf16 bfloat2 __attribute__((ext_vector_type(2)));
      out[i] = __builtin_bit_cast(
          uint32_t,
          __builtin_convertvector((float2{p[first + 2 * i], p[first + 2 * i + 1]}), bfloat2));
#else
      const float low = p[first + 2 * i], high = p[first + 2 * i + 1];
      out[i] = __builtin_amdgcn_perm(__builtin_bit_cast(uint32_t, high) + 0x8000,
                                     __builtin_bit_cast(uint32_t, low) + 0x8000, 0x07060302);
#endif
    }
    return __builtin_bit_cast(short8, out);
  }
};

template <>
struct Mma<fp16> {
  typedef short8 Fragment;
  typedef short Pair __attribute__((ext_vector_type(2)));
  static acc16 multiply(short8 a, short8 b, acc16 c) {
    const half8 x = __builtin_bit_cast(half8, a), y = __builtin_bit_cast(half8, b);
#if defined(__gfx950__)
    return __builtin_amdgcn_mfma_f32_32x32x16_f16(x, y, c, 0, 0, 0);
#else
    c = __builtin_amdgcn_mfma_f32_32x32x8f16(x.lo, y.lo, c, 0, 0, 0);
    return __builtin_amdgcn_mfma_f32_32x32x8f16(x.hi, y.hi, c, 0, 0, 0);
#endif
  }
  static acc4 multiply(short8 a, short8 b, acc4 c) {
    const half8 x = __builtin_bit_cast(half8, a), y = __builtin_bit_cast(half8, b);
#if defined(__gfx950__)
    return __builtin_amdgcn_mfma_f32_16x16x32_f16(x, y, c, 0, 0, 0);
#else
    c = __builtin_amdgcn_mfma_f32_16x16x16f16(x.lo, y.lo, c, 0, 0, 0);
    return __builtin_amdgcn_mfma_f32_16x16x16f16(x.hi, y.hi, c, 0, 0, 0);
#endif
  }
  // high + low is x to 22 bits.
  static void split(const float* x, Fragment& high, Fragment& low) {
    half8 first, second;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      first[i] = _Float16(x[i]);
      second[i] = _Float16(x[i] - float(first[i]));
    }
    high = __builtin_bit_cast(short8, first);
    low = __builtin_bit_cast(short8, second);
  }
  static short8 pack(acc16 p, int first) {
    half8 out;
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] = _Float16(p[first + i]);
    return __builtin_bit_cast(short8, out);
  }
};

}  // namespace blockdraft::cdna
