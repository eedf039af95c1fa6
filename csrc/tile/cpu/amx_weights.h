// Panels of weights for a CPU's matrix unit: of bf16, which are read where they lie; of codes with
// scales, which are decoded to bf16, some of the depth at a time.
#pragma once

#ifdef __AVX512F__
#include "base/formats.h"
#include "tile/cpu/amx.h"

namespace blockdraft::cpu {

class PlainPanels {
  static constexpr int kTile = MatrixUnit::kTile, kPanel = MatrixUnit::kPanel;

 public:
  static constexpr int kDepth = 0;  // all of it at once

  // Channels i .. i + 31, zeros from `rows` on. Those that lie unevenly are copied.
  template <class Weight>
  Panel panel(Weight weight, int i, int rows, int, int depth) {
    if (depth % MatrixUnit::kStep == 0) {
      const Panel found = ahead(weight, i, rows);
      if (found.even) return found;
    }
    const int padded = ceil_div(depth, MatrixUnit::kStep) * MatrixUnit::kStep;
    bf16* memory = reinterpret_cast<bf16*>(aligned(memory_, kPanel * padded / 2));
    for (int j = 0; j < kPanel; ++j) {
      bf16* row = memory + (j % 2 * kTile + j / 2) * padded;
      std::fill(row, row + padded, bf16{});
      if (i + j < rows) std::copy_n(weight(i + j), depth, row);
    }
    return {memory, memory + kTile * padded, padded};
  }
  // Where these channels lie, if evenly.
  template <class Weight>
  Panel ahead(Weight weight, int i, int rows) const {
    if (i + kPanel > rows) return {};
    const Panel found = {weight(i), weight(i + 1), weight(i + 2) - weight(i)};
    for (int j = 1; j < kTile; ++j)
      if (weight(i + 2 * j) != found.even + j * found.stride ||
          weight(i + 2 * j + 1) != found.odd + j * found.stride)
        return {};
    return found;
  }
  template <class Product>
  void add(const Panel&, float* sums, int, bool add, Product product) {
    product(sums, add);
  }

 private:
  std::vector<float> memory_;
};

// Decodes 32 numbers at once; `scale`, a power of two, is that of MXFP4.
template <class W>
struct WideDecoder;

template <>
struct WideDecoder<e2m1x2> {
  WideDecoder() {
    for (int i = 0; i < 32; ++i) from_float(&numbers_[i], decoded(e2m1x2{uint8_t(i & 15)}, 0));
  }
  // A scale's part in both halves of a word pair: what it adds to the bits of a number.
  static uint32_t exponent(e8m0 scale) {
    const uint32_t bits = uint32_t(int(scale.bits) - 127) << 7 & 0xffff;
    return bits << 16 | bits;
  }
  __m512i operator()(const e2m1x2* codes, uint32_t exponent) const {
    constexpr __mmask32 kNonzero = 0xfefefefe;
    const __m512i numbers = _mm512_load_si512(numbers_);
    const __m512i table =
        _mm512_mask_add_epi16(numbers, kNonzero, numbers, _mm512_set1_epi32(exponent));
    const __m512i pairs =
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
    // The permutation reads the lowest 5 bits of a word, and the table has every number twice.
    return _mm512_permutexvar_epi16(_mm512_or_si512(pairs, _mm512_slli_epi32(pairs, 12)), table);
  }

 private:
  alignas(64) bf16 numbers_[32];
};

template <class W>
struct WideByteDecoder {
  WideByteDecoder() {
    for (int i = 0; i < 128; ++i) from_float(&numbers_[i], decoded(W{uint8_t(i)}));
  }
  __m512i operator()(const W* codes, uint32_t) const {
    const __m512i code =
        _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)));
    auto table = [&](int i) { return _mm512_load_si512(numbers_ + i); };
    const __m512i low = _mm512_permutex2var_epi16(table(0), code, table(32));
    const __m512i high = _mm512_permutex2var_epi16(table(64), code, table(96));
    const __mmask32 upper = _mm512_test_epi16_mask(code, _mm512_set1_epi16(0x40));
    const __m512i sign = _mm512_slli_epi16(_mm512_and_si512(code, _mm512_set1_epi16(0x80)), 8);
    const __m512i number = _mm512_or_si512(_mm512_mask_blend_epi16(upper, low, high), sign);
    if constexpr (!std::is_same_v<W, e4m3fnuz>) return number;
    const __mmask32 nan = _mm512_cmpeq_epi16_mask(code, _mm512_set1_epi16(0x80));
    return _mm512_mask_mov_epi16(number, nan, _mm512_set1_epi16(0x7fc0));
  }

 private:
  alignas(64) bf16 numbers_[128];
};
template <>
struct WideDecoder<e4m3fn> : WideByteDecoder<e4m3fn> {};
template <>
struct WideDecoder<e4m3fnuz> : WideByteDecoder<e4m3fnuz> {};

template <class W>
class ScaledPanels {
  static constexpr int kTile = MatrixUnit::kTile, kPanel = MatrixUnit::kPanel;
  typedef Format<W> Layout;
  static constexpr bool kPowers = std::is_same_v<typename Layout::Scale, e8m0>;

 public:
  static constexpr int kDepth = kPowers ? 512 : Layout::kDepth;  // a panel of it stays in the L1

  // Whether no number comes near the ends of fp32's range by its scale.
  template <class Weight>
  static bool fits(Weight weight, int rows, int depth) {
    bool fits = true;
    const int count = ceil_div(depth, Layout::kDepth);
    for (int i = 0; i < rows; ++i) {
      const auto* scales = weight(i).scales;
      for (int k = 0; k < count; ++k) fits &= ordinary(scales[k]);
    }
    return fits;
  }

  template <class Weight>
  Panel panel(Weight weight, int i, int rows, int start, int count) {
    bf16* memory = reinterpret_cast<bf16*>(aligned(memory_, kPanel * kDepth / 2));
    for (int j = 0; j < kPanel; ++j) {
      const int place = j % 2 * kTile + j / 2;
      bf16* row = memory + place * kDepth;
      if (i + j >= rows) {
        std::fill_n(row, kDepth, bf16{});
        scales_[place] = 0;
        continue;
      }
      const ScaledRow<W> own = weight(i + j) + start;
      const ScaledRow<W> next = weight(least(i + j + kPanel, rows - 1)) + start;
      if constexpr (!kPowers) scales_[place] = *own.scales;
      decode(own, next, count, row);
    }
    return {memory, memory + kTile * kDepth, kDepth};
  }
  template <class Weight>
  static Panel ahead(Weight, int, int) {
    return {};
  }
  template <class Product>
  void add(const Panel&, float* sums, int count, bool add, Product product) {
    if constexpr (kPowers) return product(sums, add);
    alignas(64) float part[2 * MatrixUnit::kSums];
    product(part, false);
    for (int i = 0; i < count; i += kTile) {
      const __m512 before = add ? _mm512_load_ps(sums + i) : _mm512_setzero_ps();
      const __m512 scale = _mm512_set1_ps(scales_[i / kTile % kPanel]);
      _mm512_store_ps(sums + i, _mm512_fmadd_ps(_mm512_load_ps(part + i), scale, before));
    }
  }

 private:
  static bool ordinary(e8m0 scale) { return scale.bits > 127 - 64 && scale.bits < 127 + 64; }
  static bool ordinary(float scale) {
    return scale == 0 || (__builtin_fabsf(scale) > 0x1p-64f && __builtin_fabsf(scale) < 0x1p64f);
  }

  // The row's numbers in this part; those of `next` are fetched.
  void decode(const ScaledRow<W>& own, const ScaledRow<W>& next, int count, bf16* out) const {
    constexpr int kStep = MatrixUnit::kStep, kBytes = kStep / Layout::kPerByte;
    const W *codes = own.codes, *ahead = next.codes;
    uint32_t exponents[kDepth / kStep] = {};
    if constexpr (kPowers)
      for (int k = 0; k < ceil_div(count, kStep); ++k)
        exponents[k] = WideDecoder<W>::exponent(own.scales[k]);
    int k = 0;
    for (; k + kStep <= count; k += kStep, codes += kBytes, ahead += kBytes, out += kStep) {
      if (k % (64 * Layout::kPerByte) == 0) __builtin_prefetch(ahead, 0, 2);
      _mm512_store_si512(out, decoder_(codes, exponents[k / kStep]));
    }
    if (k == count) return;
    W padded[kBytes] = {};
    std::copy_n(codes, ceil_div(count - k, Layout::kPerByte), padded);
    _mm512_store_si512(out, decoder_(padded, exponents[k / kStep]));
  }

  WideDecoder<W> decoder_;
  std::vector<float> memory_;
  float scales_[kPanel] = {};
};

}  // namespace blockdraft::cpu
#endif
