// Panels of weights for a CPU's matrix unit, 32 elements of the depth at a time: of bf16, which are
// read where they lie; of codes with scales, which are decoded to bf16.
//
//   open(weight, i, rows, depth)   channels i .. i + 31, of which those from `rows` on are any
//   step(k)                        their elements from k on, zeros beyond the depth
//   add(depth, sums, count, product)
//     sums[0 .. count) = the sum of product(start, end, out, add), which covers part of the depth
//     and may add to `out`
#pragma once

#ifdef __AVX512F__
#include "base/formats.h"
#include "tile/cpu/amx.h"

namespace blockdraft::cpu {

// The steps that are made in memory. A tile is not loaded from stores on their way to the L1, so
// they are made some steps before they are read.
class PanelRing {
  static constexpr int kSteps = 4, kAhead = 2, kStep = MatrixUnit::kStep;

 public:
  // The step at k, after those before it; of_step(k)(j) -> 32 elements of channel j.
  template <class Make>
  __attribute__((always_inline)) WeightPanel at(int k, int depth, Make of_step) {
    for (int next = k ? k + kAhead * kStep : 0; next <= k + kAhead * kStep && next < depth;
         next += kStep) {
      bf16* panel = memory_[next / kStep % kSteps];
      const auto make = of_step(next);
#pragma GCC unroll 4
      for (int j = 0; j < MatrixUnit::kTile; ++j) {
        _mm512_store_si512(panel + j * kStep, make(2 * j));
        _mm512_store_si512(panel + (MatrixUnit::kTile + j) * kStep, make(2 * j + 1));
      }
    }
    const bf16* panel = memory_[k / kStep % kSteps];
    return {panel, panel + MatrixUnit::kTile * kStep, kStep};
  }

 private:
  alignas(64) bf16 memory_[kSteps][MatrixUnit::kPanel * kStep];
};

class PlainPanels {
  static constexpr int kTile = MatrixUnit::kTile, kPanel = MatrixUnit::kPanel;

 public:
  template <class Weight>
  void open(Weight weight, int i, int rows, int depth) {
    for (int j = 0; j < kPanel; ++j) rows_[j] = weight(least(i + j, rows - 1));
    depth_ = depth;
    stride_ = rows_[2] - rows_[0];
    even_ = depth % MatrixUnit::kStep == 0;
    for (int j = 2; j < kPanel; ++j) even_ &= rows_[j] - rows_[j - 2] == stride_;
  }
  __attribute__((always_inline)) WeightPanel step(int k) {
    if (even_) return {rows_[0] + k, rows_[1] + k, stride_};
    return ring_.at(k, depth_, [this](int next) {
      return [this, next, mask = __mmask32(bits_below(depth_ - next))](int j) {
        return _mm512_maskz_loadu_epi16(mask, rows_[j] + next);
      };
    });
  }
  template <class Product>
  void add(int depth, float* sums, int, Product product) {
    product(0, depth, sums, false);
  }

 private:
  const bf16* rows_[kPanel];
  int64_t stride_;
  int depth_;
  bool even_;  // whether rows are equally far from each other, in each half
  PanelRing ring_;
};

// Decodes 32 numbers, of which those from `count` on are zeros.
template <class W>
class WideDecoder;

template <>
class WideDecoder<e2m1x2> {
 public:
  WideDecoder() {
    for (int i = 0; i < 32; ++i) from_float(&numbers_[i], decoded(e2m1x2{uint8_t(i & 15)}, 0));
  }
  // out[k], of a scale: what it adds to the bits of two numbers.
  static void exponents(const e8m0* scales, int count, uint32_t* out) {
    for (int k = 0; k < count; k += 16) {
      const __mmask16 mask = bits_below(least(count - k, 16));
      const __m512i power = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, scales + k));
      const __m512i high = _mm512_slli_epi32(_mm512_sub_epi32(power, _mm512_set1_epi32(127)), 23);
      _mm512_mask_storeu_epi32(out + k, mask, _mm512_or_si512(high, _mm512_srli_epi32(high, 16)));
    }
  }
  auto of_step(int) const {
    const __m512i numbers = _mm512_load_si512(numbers_);
    return [=](const e2m1x2* codes, uint32_t exponent) { return decode(numbers, codes, exponent); };
  }

 private:
  __attribute__((always_inline)) static __m512i decode(__m512i numbers, const e2m1x2* codes,
                                                       uint32_t exponent) {
    constexpr __mmask32 kNonzero = 0xfefefefe;
    const __m512i table =
        _mm512_mask_add_epi16(numbers, kNonzero, numbers, _mm512_set1_epi32(exponent));
    const __m512i pairs =
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
    // A permutation reads the lowest 5 bits of a word; the table has every number twice.
    return _mm512_permutexvar_epi16(_mm512_or_si512(pairs, _mm512_slli_epi32(pairs, 12)), table);
  }

  alignas(64) bf16 numbers_[32];
};

template <class W>
class WideByteDecoder {
  static constexpr bool kFnuz = std::is_same_v<W, e4m3fnuz>;

 public:
  WideByteDecoder() {
    for (int i = 0; i < 32; ++i) from_float(&subnormals_[i], decoded(W{uint8_t(i & 7)}));
  }
  auto of_step(int count) const {
    const __m512i subnormals = _mm512_load_si512(subnormals_);
    const __mmask32 mask = bits_below(count);
    return [=](const W* codes, uint32_t) { return decode(subnormals, mask, codes); };
  }

 private:
  __attribute__((always_inline)) static __m512i decode(__m512i subnormals, __mmask32 mask,
                                                       const W* codes) {
    const __m512i code = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(mask, codes));
    const __m512i magnitude = _mm512_and_si512(code, _mm512_set1_epi16(0x7f));
    const __m512i normal = _mm512_add_epi16(_mm512_slli_epi16(magnitude, 4),
                                            _mm512_set1_epi16((kFnuz ? 119 : 120) << 7));
    const __mmask32 subnormal = _mm512_testn_epi16_mask(code, _mm512_set1_epi16(0x78));
    const __m512i number = _mm512_mask_permutexvar_epi16(normal, subnormal, code, subnormals);
    const __mmask32 nan = kFnuz ? _mm512_cmpeq_epi16_mask(code, _mm512_set1_epi16(0x80))
                                : _mm512_cmpeq_epi16_mask(magnitude, _mm512_set1_epi16(0x7f));
    const __m512i sign = _mm512_set1_epi16(int16_t(0x8000));
    const __m512i moved = _mm512_slli_epi16(code, 8);
    const __m512i out = _mm512_ternarylogic_epi32(number, moved, sign, 0xf8);  // a | b & c
    return _mm512_mask_mov_epi16(out, nan, _mm512_set1_epi16(0x7fc0));
  }

  alignas(64) bf16 subnormals_[32];
};
template <>
class WideDecoder<e4m3fn> : public WideByteDecoder<e4m3fn> {};
template <>
class WideDecoder<e4m3fnuz> : public WideByteDecoder<e4m3fnuz> {};

template <class W>
class ScaledPanels {
  static constexpr int kTile = MatrixUnit::kTile, kPanel = MatrixUnit::kPanel;
  static constexpr int kStep = MatrixUnit::kStep;
  typedef Format<W> Layout;
  static constexpr bool kPowers = std::is_same_v<typename Layout::Scale, e8m0>;
  static_assert(kPowers ? Layout::kDepth == kStep : Layout::kDepth % kStep == 0);

 public:
  // Whether no number comes near the ends of fp32's range by its scale.
  template <class Weight>
  static bool fits(Weight weight, int rows, int depth) {
    const int count = ceil_div(depth, Layout::kDepth);
    for (int i = 0; i < rows; ++i)
      if (!ordinary(weight(i).scales, count)) return false;
    return true;
  }

  template <class Weight>
  void open(Weight weight, int i, int rows, int depth) {
    fetched_ = fetched_row_ = 0;
    depth_ = depth;
    steps_ = ceil_div(depth, kStep);
    if (kPowers) exponents_.resize(kPanel * steps_);
    for (int j = 0; j < kPanel; ++j) {
      const ScaledRow<W> row = weight(least(i + j, rows - 1));
      codes_[j] = row.codes;
      scales_[j] = row.scales;
      ahead_[j] = weight(least(i + j + kPanel, rows - 1)).codes;
      if constexpr (kPowers)
        WideDecoder<W>::exponents(row.scales, steps_, exponents_.data() + j * steps_);
    }
  }
  __attribute__((always_inline)) WeightPanel step(int k) {
    fetch();
    return ring_.at(k, depth_, [this](int next) {
      const auto decode = decoder_.of_step(depth_ - next);
      const int offset = next / Layout::kPerByte, steps = steps_;
      const uint32_t* exponents = exponents_.data() + next / kStep;
      return [=, this](int j) {
        return decode(codes_[j] + offset, kPowers ? exponents[j * steps] : 0);
      };
    });
  }
  template <class Product>
  void add(int depth, float* sums, int count, Product product) {
    if constexpr (kPowers) return product(0, depth, sums, false);
    alignas(64) float part[MatrixUnit::kTiles * MatrixUnit::kSums];
    std::fill_n(sums, count, 0.0f);
    for (int k = 0; k < depth; k += Layout::kDepth) {
      product(k, least(k + Layout::kDepth, depth), part, false);
      for (int i = 0; i < count; i += kTile) {
        const int channel = i / kTile % kPanel;
        const float scale =
            decoded(scales_[channel % kTile * 2 + channel / kTile][k / Layout::kDepth]);
        _mm512_store_ps(sums + i, _mm512_fmadd_ps(_mm512_load_ps(part + i), _mm512_set1_ps(scale),
                                                  _mm512_load_ps(sums + i)));
      }
    }
  }

 private:
  static bool ordinary(const e8m0* scales, int count) {
    __mmask64 large = 0;  // or small
    for (int k = 0; k < count; k += 64) {
      const __mmask64 mask = count - k < 64 ? (uint64_t(1) << (count - k)) - 1 : ~uint64_t(0);
      const __m512i above =
          _mm512_sub_epi8(_mm512_maskz_loadu_epi8(mask, scales + k), _mm512_set1_epi8(63));
      large |= _mm512_mask_cmpgt_epu8_mask(mask, above, _mm512_set1_epi8(127));
    }
    return !large;
  }
  static bool ordinary(const float* scales, int count) {
    bool found = true;
    for (int k = 0; k < count; ++k) {
      const float size = __builtin_fabsf(scales[k]);
      found &= size == 0 || (size > 0x1p-64f && size < 0x1p64f);
    }
    return found;
  }

  // A step's part of the next panel, one row after the other as the hardware's prefetching likes it.
  void fetch() {
    constexpr int kLine = 64, kLines = kPanel * kStep / Layout::kPerByte / kLine;
    for (int i = 0; i < kLines; ++i) {
      __builtin_prefetch(ahead_[fetched_row_] + fetched_, 0, 2);
      fetched_ += kLine;
      if (fetched_ < depth_ / Layout::kPerByte) continue;
      fetched_ = 0;
      fetched_row_ = (fetched_row_ + 1) % kPanel;
    }
  }

  const W *codes_[kPanel], *ahead_[kPanel];  // of this panel and of the next one
  const typename Layout::Scale* scales_[kPanel];
  int depth_, steps_;
  int fetched_row_, fetched_;        // and bytes of it
  std::vector<uint32_t> exponents_;  // [channel][step]
  WideDecoder<W> decoder_;
  PanelRing ring_;
};

}  // namespace blockdraft::cpu
#endif
