// Weights of a CPU's product that have scales. They are decoded in registers, 64 at a time, to bf16
// in the order in which that is cheap, and widened; their tokens are staged in the same order, and
// times kLift, so that products are normal numbers. A channel's sum of 64 products is multiplied by
// the scale.
#pragma once

#include <utility>

#include "base/formats.h"
#include "tile/cpu/plain.h"

namespace blockdraft::cpu {

// x := the even numbers of 4 vectors, then the odd ones.
inline void unshuffle(vec* x) {
  divide(x[0], x[1]);
  divide(x[2], x[3]);
  std::swap(x[1], x[2]);
}

// Decodes a unit of 64 weights into 4 vectors of 16 words; `arrange` brings 8 vectors of tokens into
// their order. Words are the numbers times 1 / kFactor.
template <class W>
struct Decoder;

// Codes are looked up: moved to the place of fp32's fields, 0.5 would be subnormal, and Intel's CPUs
// multiply such numbers 50 times as slowly. The lower half of the words has the first of two groups
// of 32 weights that share a scale.
template <>
struct Decoder<e2m1x2> {
  static constexpr float kFactor = 0x1p120f;
  static void arrange(vec* x) {
    for (int i = 0; i < 8; i += 2) divide(x[i], x[i + 1]);
    const vec ordered[] = {x[0], x[4], x[2], x[6], x[1], x[5], x[3], x[7]};
    std::copy_n(ordered, 8, x);
  }

  explicit Decoder(const uint8_t* codes) { std::memcpy(&codes_, codes, sizeof codes_); }
  // Of even codes, then of odd ones.
  template <int kVector>
  words get() const {
    const bytes code = (bytes)((words)codes_ >> (kVector < 2 ? 0 : 4)) & 15;
#ifdef __AVX2__
    const __m256i low = look_up(0, code), high = look_up(8, code);
    return (words)(kVector % 2 ? _mm256_unpackhi_epi8(low, high) : _mm256_unpacklo_epi8(low, high));
#else
    words out;
    for (int i = 0; i < 16; ++i) out[i] = word(code[i / 8 * 16 + kVector % 2 * 8 + i % 8]);
    return out;
#endif
  }

 private:
  static constexpr uint16_t word(int code) {
    const float number = decoded(e2m1x2{uint8_t(code)}, 0) / kFactor;
    return uint16_t(__builtin_bit_cast(uint32_t, number) >> 16);
  }
#ifdef __AVX2__
  // The bits of words from `shift` on.
  static __m256i look_up(int shift, bytes code) {
    __m128i table;
    for (int i = 0; i < 16; ++i) reinterpret_cast<uint8_t*>(&table)[i] = uint8_t(word(i) >> shift);
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), (__m256i)code);
  }
#endif

  bytes codes_;
};

// 8 bits, moved to the place of bf16's fields. NaN is found by its code.
template <class W>
struct ByteDecoder {
  static constexpr float kFactor = field_factor(std::is_same_v<W, e4m3fnuz>);
  static void arrange(vec* x) {
    unshuffle(x);
    unshuffle(x + 4);
  }

  explicit ByteDecoder(const uint8_t* codes) : codes_(codes) {}
  template <int kVector>
  words get() const {
    bytes codes;
    std::memcpy(&codes, codes_ + kVector / 2 * 32, sizeof codes);
    auto moved = [](bytes x) { return kVector % 2 ? (words)x : (words)x << 8; };
    const words number = (words)((signed_words)moved(codes) >> 4) & 0x87f0;
    const words nan = (words)((signed_words)moved(nan_marks<W>(codes) == 0xff) >> 15);
    return number | nan;
  }

 private:
  const uint8_t* codes_;
};
template <>
struct Decoder<e4m3fn> : ByteDecoder<e4m3fn> {
  using ByteDecoder::ByteDecoder;
};
template <>
struct Decoder<e4m3fnuz> : ByteDecoder<e4m3fnuz> {
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
  static constexpr int kUnit = 64;
  static constexpr int kDepth = 1024;  // as PlainWeights
  static_assert(kUnit % Layout::kDepth == 0 || Layout::kDepth % kUnit == 0);

  template <class X>
  static void stage_unit(const X* unit, float* out) {
    vec v[kUnit / kLanes];
    for (int i = 0; i < kUnit / kLanes; ++i) v[i] = to_float(unit + i * kLanes) * kLift;
    Decoder<W>::arrange(v);
    if constexpr (kWide == kLanes)  // words are widened as pairs
      for (int i = 0; i < kUnit / kLanes; i += 2) divide(v[i], v[i + 1]);
    std::memcpy(out, v, sizeof v);
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
  static constexpr float kLowered = Decoder<W>::kFactor / kLift;

  // The bits of eight scales times kLowered; of those that are too large, at least infinity's.
  static uvec lowered(const float* p) { return (uvec)(load(p) * kLowered); }
  static uvec lowered(const e8m0* p) {
    return (widen(&p->bits) << 23) + (__builtin_bit_cast(uint32_t, kLowered) - 0x3f800000u);
  }
  // The scales of a part of a row, times kLowered unless one is too large. Returns what is left to
  // multiply with.
  static float decode_scales(const typename Layout::Scale* scales, int count, float* out) {
    constexpr uint32_t kMagnitude = std::is_same_v<typename Layout::Scale, float> ? ~0u >> 1 : ~0u;
    uvec largest{};
    for (int i = 0; i < count; i += kLanes) {
      typename Layout::Scale padded[kLanes] = {};
      const bool whole = i + kLanes <= count;
      if (!whole) std::copy(scales + i, scales + count, padded);
      const uvec x = lowered(whole ? scales + i : padded), magnitude = x & kMagnitude;
      store(out + i, (vec)x);
      largest = largest > magnitude ? largest : magnitude;
    }
    bool large = false;
    for (int j = 0; j < kLanes; ++j) large |= largest[j] >= 0x7f800000u;
    if (!large) return 1;
    for (int i = 0; i < count; ++i) out[i] = decoded(scales[i]);
    return kLowered;
  }
  // Of the unit at k: the lower lanes have its first weights.
  static wide scale_at(const float* scales, unsigned k) {
    scales += k / Layout::kDepth;
    const wide first = splat_wide(scales[0]);
    if constexpr (Layout::kDepth >= kUnit) return first;
    iwide lower;
    for (int lane = 0; lane < kWide; ++lane) lower[lane] = lane < kWide / 2 ? -1 : 0;
    return lower ? first : splat_wide(scales[1]);
  }

  template <int kWidth>
  static void multiply_row(const Row& own, const Row& next, const Fetch<Row>& fetch, const float* x,
                           wide (&sums)[kWidth], int depth) {
    constexpr int kBytes = kUnit / Layout::kPerByte;
    alignas(32) float scales[kDepth / Layout::kDepth];
    const float rest = decode_scales(own.scales, ceil_div(depth, Layout::kDepth), scales);
    const uint8_t *codes = &own.codes->bits, *ahead = &next.codes->bits;
    int turn = fetch.turn;
#pragma GCC unroll 8
    for (int c = 0; c < kWidth; ++c) sums[c] = wide{};
    int k = 0;
    for (; k + kUnit <= depth; k += kUnit, codes += kBytes, ahead += kBytes, x += kWidth * kUnit) {
      if (--turn == 0) {
        turn = fetch.tiles;
        __builtin_prefetch(ahead, 0, 2);
      }
      add_unit<kWidth>(codes, scale_at(scales, k), x, sums);
    }
    if (k < depth) {
      uint8_t padded[kBytes] = {};
      std::copy_n(codes, ceil_div(depth - k, Layout::kPerByte), padded);
      add_unit<kWidth>(padded, scale_at(scales, k), x, sums);
    }
    for (int c = 0; c < kWidth; ++c) sums[c] *= rest;
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
#pragma GCC unroll 8
    for (int c = 0; c < kWidth; ++c)
      partial[c] = multiply_add(weight, load_wide(x + c * kUnit), partial[c]);
  }
};

}  // namespace blockdraft::cpu
