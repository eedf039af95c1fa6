// Codes decoded to bf16 for a CPU's matrix unit, exactly: 128 at a time, as 4 vectors.
#pragma once

#ifdef __AVX512F__
#include "base/formats.h"
#include "tile/cpu/amx.h"

namespace blockdraft::cpu {

// loaded() is decode(codes, count, exponents, out), whose constants stay in registers: out[4] := 128
// numbers, zeros from `count` on, from where no code is read. Of each vector, pair p is pair(p) of
// its numbers. If scales are powers of two, exponents(scales, count, out) makes of each one what
// decode needs for its 32 numbers.
template <class W>
class ChunkDecoder;

// Codes are looked up, two bytes each. CPUs with a matrix unit have the instructions (VBMI), which
// are spelled out, because the rest is compiled without them.
template <>
class ChunkDecoder<e2m1x2> {
 public:
  // A vector's lanes of 4 numbers are of its first 16 codes and of its last 16 in turn.
  static constexpr int pair(int p) { return p / 2 % 2 * 8 + p / 4 * 2 + p % 2; }

  ChunkDecoder() {
    for (int i = 0; i < 32; ++i) {
      from_float(&numbers_[i], decoded(e2m1x2{uint8_t(i & 15)}, 0));
      const int bit = (pair(i / 2) % 8 * 2 + i % 2) * 4;
      places_[2 * i] = places_[2 * i + 1] = uint8_t(bit - 1) & 63;
    }
  }
  // out[k], of a scale: what it adds to the bits of two numbers.
  static void exponents(const e8m0* scales, int count, uint32_t* out) {
    for (int k = 0; k < count; k += 16) {
      const __mmask16 mask = uint16_t(bits_below(count - k));
      const __m512i power = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, scales + k));
      const __m512i high = _mm512_slli_epi32(_mm512_sub_epi32(power, _mm512_set1_epi32(127)), 23);
      _mm512_mask_storeu_epi32(out + k, mask, _mm512_or_si512(high, _mm512_srli_epi32(high, 16)));
    }
  }
  auto loaded() const {
    const __m512i numbers = _mm512_load_si512(numbers_), places = _mm512_load_si512(places_);
    return [=](const e2m1x2* codes, int count, const uint32_t* exponents, __m512i* out) {
      alignas(64) e2m1x2 padded[64];
      if (count < 128) {
        const __mmask64 mask = bits_below(ceil_div(count, 2));
        _mm512_store_si512(padded, _mm512_maskz_loadu_epi8(mask, codes));
        codes = padded;
      }
#pragma GCC unroll 4
      for (int s = 0; s < 4; ++s) out[s] = decode(codes + 16 * s, exponents[s], numbers, places);
    };
  }

 private:
  __attribute__((always_inline)) static __m512i decode(const e2m1x2* codes, uint32_t exponent,
                                                       __m512i numbers, __m512i places) {
    // Every number twice: a look-up reads the lowest 6 bits of a byte.
    constexpr __mmask32 kNonzero = 0xfefefefe;
    const __m512i table =
        _mm512_mask_add_epi16(numbers, kNonzero, numbers, _mm512_set1_epi32(exponent));
    const __m512i all =
        _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
    __m512i bytes, found;
    asm("vpmultishiftqb %2, %1, %0" : "=v"(bytes) : "v"(places), "v"(all));
    // bits 1 to 4: the code; bit 0: which byte of its number
    const __m512i index = _mm512_ternarylogic_epi32(bytes, _mm512_set1_epi8(0x1e),
                                                    _mm512_set1_epi16(0x100), 0xea);  // a & b | c
    asm("vpermb %2, %1, %0" : "=v"(found) : "v"(index), "v"(table));
    return found;
  }

  alignas(64) bf16 numbers_[32];
  alignas(64) uint8_t places_[64];  // where the bits for a byte begin in a lane of codes
};

// Of fp8.
template <class W>
class ChunkDecoder {
  static constexpr bool kFnuz = std::is_same_v<W, e4m3fnuz>;

 public:
  ChunkDecoder() {
    for (int i = 0; i < 32; ++i) from_float(&subnormals_[i], decoded(W{uint8_t(i & 7)}));
  }
  static constexpr int pair(int p) { return p; }

  auto loaded() const {
    return [this](const W* codes, int count, const uint32_t*, __m512i* out) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half)
        decode_half(codes + 64 * half, bits_below(count - 64 * half), out + 2 * half);
    };
  }
  // Half of a chunk, of codes that the mask names.
  __attribute__((always_inline)) void decode_half(const W* codes, __mmask64 mask,
                                                  __m512i* out) const {
    const __m512i all = _mm512_maskz_loadu_epi8(mask, codes);
    const __m256i parts[] = {_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1)};
    // Subnormal numbers and NaN are rare.
    const __m512i above =
        _mm512_sub_epi8(_mm512_and_si512(all, _mm512_set1_epi8(0x7f)), _mm512_set1_epi8(8));
    const bool rare = _mm512_cmpgt_epu8_mask(above, _mm512_set1_epi8(kFnuz ? 0x77 : 0x76));
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      // the sign 5 times, the exponent and the mantissa where bf16 has them
      const __m512i moved = _mm512_slli_epi16(_mm512_cvtepi8_epi16(parts[i]), 4);
      out[i] = _mm512_add_epi16(_mm512_and_si512(moved, _mm512_set1_epi16(int16_t(0x87f0))),
                                _mm512_set1_epi16((kFnuz ? 119 : 120) << 7));
      if (__builtin_expect(rare, 0)) out[i] = mended(out[i], parts[i]);
    }
  }

 private:
  // The numbers, of which the normal ones are given.
  __attribute__((noinline)) __m512i mended(__m512i normal, __m256i codes) const {
    const __m512i code = _mm512_cvtepu8_epi16(codes);
    const __m512i magnitude = _mm512_and_si512(code, _mm512_set1_epi16(0x7f));
    const __mmask32 subnormal = _mm512_testn_epi16_mask(code, _mm512_set1_epi16(0x78));
    const __mmask32 nan = kFnuz ? _mm512_cmpeq_epi16_mask(code, _mm512_set1_epi16(0x80))
                                : _mm512_cmpeq_epi16_mask(magnitude, _mm512_set1_epi16(0x7f));
    const __m512i number = _mm512_permutexvar_epi16(code, _mm512_load_si512(subnormals_));
    const __m512i sign =
        _mm512_and_si512(_mm512_slli_epi16(code, 8), _mm512_set1_epi16(int16_t(0x8000)));
    const __m512i out = _mm512_mask_mov_epi16(normal, subnormal, _mm512_or_si512(number, sign));
    return _mm512_mask_mov_epi16(out, nan, _mm512_set1_epi16(0x7fc0));
  }

  alignas(64) bf16 subnormals_[32];
};

}  // namespace blockdraft::cpu
#endif
