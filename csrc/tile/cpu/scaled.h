// Weights of a CPU's product that have scales. They are decoded in registers, 64 at a time, to bf16
// in the order in which that is cheap, and widened; their tokens are staged in the same order. A
// channel's sum of 64 products is multiplied by the scale.
#pragma once

#include <array>

#include "base/formats.h"
#include "tile/cpu/plain.h"

namespace blockdraft::cpu {

#ifdef __AVX2__
inline __m256i repeated(uint64_t low, uint64_t high) {
  return _mm256_set_epi64x(int64_t(high), int64_t(low), int64_t(high), int64_t(low));
}
#endif

// Decodes a unit of 64 weights into kVectors vectors of 16 words. `element(v, i)`: which one of the
// unit word i of vector v is. The numbers are those of the words times kFactor.
template <class W>
struct Decoder;

template <>
struct Decoder<e2m1x2> {
  static constexpr float kFactor = 1;
  // A half of the vectors has a group of 32 weights that share a scale, of which two vectors have
  // the even ones.
  static int element(int v, int i) { return i / 8 * 32 + v % 2 * 16 + i % 8 * 2 + v / 2; }

#ifdef __AVX2__
  explicit Decoder(const uint8_t* codes) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
    const __m256i nibble = _mm256_set1_epi8(15);
    index_[0] = _mm256_and_si256(both, nibble);
    index_[1] = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
  }
  template <int kVector>
  words get() const {
    // The high and the low bytes of 0 0.5 1 1.5 2 3 4 6 as bf16, and of their opposites.
    const __m256i high = repeated(0x404040403f3f3f00u, 0xc0c0c0c0bfbfbf80u);
    const __m256i low = repeated(0xc0804000c0800000u, 0xc0804000c0800000u);
    const __m256i x = _mm256_shuffle_epi8(low, index_[kVector / 2]);
    const __m256i y = _mm256_shuffle_epi8(high, index_[kVector / 2]);
    return words(kVector % 2 ? _mm256_unpackhi_epi8(x, y) : _mm256_unpacklo_epi8(x, y));
  }

 private:
  __m256i index_[2];
#else
  explicit Decoder(const uint8_t* codes) : codes_(codes) {}
  template <int kVector>
  words get() const {
    words out;
    for (int i = 0; i < 16; ++i) {
      const int k = element(kVector, i);
      out[i] = uint16_t(__builtin_bit_cast(uint32_t, decoded(e2m1x2{codes_[k / 2]}, k % 2)) >> 16);
    }
    return out;
  }

 private:
  const uint8_t* codes_;
#endif
};

// 8 bits: moved to the place of bf16's fields, they are the number itself times 2^(bias - 127), also
// the subnormal ones; NaN is found by its code.
template <bool kNanIsMinusZero, int kBias>
struct ByteDecoder {
  static constexpr float kFactor = __builtin_bit_cast(float, (254 - kBias) << 23);
  static int element(int v, int i) { return v / 2 * 32 + i / 8 * 16 + v % 2 * 8 + i % 8; }

  explicit ByteDecoder(const uint8_t* codes) : codes_(codes) {}
#ifdef __AVX2__
  template <int kVector>
  words get() const {
    const __m256i codes =
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes_ + kVector / 2 * 32));
    const __m256i sign = _mm256_set1_epi8(char(0x80)), ones = _mm256_set1_epi8(-1);
    const __m256i nan = kNanIsMinusZero ? _mm256_cmpeq_epi8(codes, sign)
                                        : _mm256_cmpeq_epi8(_mm256_or_si256(codes, sign), ones);
    auto half = [](__m256i a, __m256i b) {
      return kVector % 2 ? _mm256_unpackhi_epi8(a, b) : _mm256_unpacklo_epi8(a, b);
    };
    const __m256i moved = _mm256_srai_epi16(half(_mm256_setzero_si256(), codes), 4);
    const __m256i number = _mm256_and_si256(moved, _mm256_set1_epi16(short(0x87f0)));
    return words(_mm256_or_si256(number, half(nan, nan)));
  }
#else
  template <int kVector>
  words get() const {
    words out;
    for (int i = 0; i < 16; ++i) {
      const int code = codes_[element(kVector, i)];
      const bool nan = kNanIsMinusZero ? code == 0x80 : (code | 0x80) == 0xff;
      out[i] = nan ? 0xffff : uint16_t((code & 0x80) << 8 | (code & 0x7f) << 4);
    }
    return out;
  }
#endif

 private:
  const uint8_t* codes_;
};
template <>
struct Decoder<e4m3fn> : ByteDecoder<false, 7> {
  using ByteDecoder::ByteDecoder;
};
template <>
struct Decoder<e4m3fnuz> : ByteDecoder<true, 8> {
  using ByteDecoder::ByteDecoder;
};

template <class W>
struct ScaledWeights {
  typedef ScaledRow<W> Row;
  typedef Format<W> Layout;
#ifdef __AVX512F__
  static constexpr int kTileColumns = 6;
#else
  static constexpr int kTileColumns = 4;
#endif
  static constexpr int kUnit = 64, kVectors = 4;
  static constexpr int kDepth = 1024;  // as PlainWeights
  static_assert(kUnit % Layout::kDepth == 0 || Layout::kDepth % kUnit == 0);

  template <class X>
  static void stage_unit(const X* unit, float* out) {
    for (int v = 0; v < kVectors; ++v)
      for (int i = 0; i < 16; ++i)
        out[16 * v + place(i)] = cpu::value(unit[Decoder<W>::element(v, i)]);
  }

  template <int kWidth>
  __attribute__((noinline)) static void multiply(const Row (&own)[kTileRows],
                                                 const Fetch<Row>& fetch, const float* x, four* out,
                                                 int depth) {
    wide sums[kTileRows][kWidth];
#pragma GCC unroll 4
    for (int j = 0; j < kTileRows; ++j)
      multiply_row<kWidth>(own[j], fetch.rows[j], fetch, x, sums[j], depth);
#pragma GCC unroll 8
    for (int c = 0; c < kWidth; ++c)
      out[c] = sums_of(sums[0][c], sums[1][c], sums[2][c], sums[3][c]);
  }

 private:
  // Where word i of 16 is after it was widened.
  static int place(int i) { return kWide == 16 ? i : i % 2 * 8 + i / 2; }

  template <int kWidth>
  static void multiply_row(const Row& own, const Row& next, const Fetch<Row>& fetch, const float* x,
                           wide (&sums)[kWidth], int depth) {
    constexpr int kBytes = kUnit / Layout::kPerByte;
    const uint8_t* codes = &own.codes->bits;
    int turn = fetch.turn;
#pragma GCC unroll 8
    for (int c = 0; c < kWidth; ++c) sums[c] = wide{};
    int k = 0;
    for (; k + kUnit <= depth; k += kUnit, codes += kBytes, x += kWidth * kUnit) {
      if (--turn == 0) {
        turn = fetch.tiles;
        __builtin_prefetch(&next.codes->bits + k / Layout::kPerByte, 0, 2);
      }
      add_unit<kWidth>(codes, scale_at(own.scales, k, depth), x, sums);
    }
    if (k == depth) return;
    uint8_t padded[kBytes] = {};
    std::copy_n(codes, ceil_div(depth - k, Layout::kPerByte), padded);
    add_unit<kWidth>(padded, scale_at(own.scales, k, depth), x, sums);
  }

  // Of the unit at k: the lower lanes have its first weights.
  static wide scale_at(const float* scales, int k, int) {
    return splat_wide(scales[k / Layout::kDepth]);
  }
  static wide scale_at(const e8m0* scales, int k, int depth) {
    static constexpr auto kPowers = [] {
      std::array<float, 256> powers{};
      for (int i = 0; i < 256; ++i) powers[i] = decoded(e8m0{uint8_t(i)});
      return powers;
    }();
    const int i = k / Layout::kDepth;
    const wide first = splat_wide(kPowers[scales[i].bits]);
    const wide second =
        splat_wide(kPowers[scales[least(i + 1, (depth - 1) / Layout::kDepth)].bits]);
    iwide lower;
    for (int lane = 0; lane < kWide; ++lane) lower[lane] = lane < kWide / 2 ? -1 : 0;
    return lower ? first : second;
  }

  template <int kWidth>
  __attribute__((always_inline)) static void add_unit(const uint8_t* codes, wide scale,
                                                      const float* x, wide (&sums)[kWidth]) {
    // Even and odd vectors of words have sums of their own, so that dependency chains are shorter.
    const Decoder<W> decoder(codes);
    wide even[kWidth], odd[kWidth];
#pragma GCC unroll 8
    for (int c = 0; c < kWidth; ++c) even[c] = odd[c] = wide{};
    add_words<kWidth>(decoder.template get<0>(), x, even);
    add_words<kWidth>(decoder.template get<1>(), x + 16, odd);
    add_words<kWidth>(decoder.template get<2>(), x + 32, even);
    add_words<kWidth>(decoder.template get<3>(), x + 48, odd);
#pragma GCC unroll 8
    for (int c = 0; c < kWidth; ++c) sums[c] = multiply_add(even[c] + odd[c], scale, sums[c]);
  }
  template <int kWidth>
  __attribute__((always_inline)) static void add_words(words pairs, const float* x,
                                                       wide (&partial)[kWidth]) {
#ifdef __AVX512F__
    const wide whole = (wide)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)pairs), 16);
    add_products<kWidth>(whole, x, partial);
#else
    add_products<kWidth>((wide)((uwide)pairs << 16), x, partial);
    add_products<kWidth>((wide)((uwide)pairs & 0xffff0000u), x + kWide, partial);
#endif
  }
  template <int kWidth>
  __attribute__((always_inline)) static void add_products(wide weight, const float* x,
                                                          wide (&partial)[kWidth]) {
    if constexpr (Decoder<W>::kFactor != 1) weight *= Decoder<W>::kFactor;
#pragma GCC unroll 8
    for (int c = 0; c < kWidth; ++c)
      partial[c] = multiply_add(weight, load_wide(x + c * kUnit), partial[c]);
  }
};

}  // namespace blockdraft::cpu
