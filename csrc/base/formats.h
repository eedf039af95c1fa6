// Numbers in lower precision, as they are stored: weights, keys and values, with scales beside them.
#pragma once

#include "base/numbers.h"
#include "base/view.h"

namespace blockdraft {

// 8-bit floating point with 4 bits of exponent and 3 of mantissa, without infinities. e4m3fn is
// OCP's (gfx950): 0x7f and 0xff are NaN. e4m3fnuz is gfx942's: half of e4m3fn's numbers, and 0x80
// is NaN.
struct e4m3fn {
  uint8_t bits;
};
struct e4m3fnuz {
  uint8_t bits;
};
// Two numbers of 4 bits (sign, 2 bits of exponent, 1 of mantissa), the first in the lower half.
struct e2m1x2 {
  uint8_t bits;
};
// A power of two, 2^(bits - 127); 0xff is NaN.
struct e8m0 {
  uint8_t bits;
};

// How weights are stored: kRows by kDepth of them share a scale. T itself has no scales.
template <class W>
struct Format {
  static constexpr bool kScaled = false;
  typedef float Scale;  // unused
};
struct BlockFormat {
  static constexpr bool kScaled = true;
  static constexpr int kRows = 128, kDepth = 128, kPerByte = 1;
  typedef float Scale;
};
template <>
struct Format<e4m3fn> : BlockFormat {};
template <>
struct Format<e4m3fnuz> : BlockFormat {};
template <>
struct Format<e2m1x2> {  // MXFP4
  static constexpr bool kScaled = true;
  static constexpr int kRows = 1, kDepth = 32, kPerByte = 2;
  typedef e8m0 Scale;
};

constexpr float decoded(float scale) { return scale; }
constexpr float decoded(e8m0 x) {
  const uint32_t bits = uint32_t(x.bits) << 23;
  return __builtin_bit_cast(float, x.bits == 0 ? 0x00400000u : x.bits == 255 ? 0x7fc00000u : bits);
}
// 8 bits whose exponent has this bias. Shifted into the place of fp32's fields they are the number
// itself times 2^(bias - 127), also the subnormal ones.
constexpr float decoded(uint8_t code, int bias, bool nan) {
  const uint32_t bits = uint32_t(code & 0x80) << 24 | uint32_t(code & 0x7f) << 20;
  const float factor = __builtin_bit_cast(float, uint32_t(254 - bias) << 23);
  return nan ? __builtin_nanf("") : __builtin_bit_cast(float, bits) * factor;
}
constexpr float decoded(e4m3fn x) { return decoded(x.bits, 7, (x.bits & 0x7f) == 0x7f); }
constexpr float decoded(e4m3fnuz x) { return decoded(x.bits, 8, x.bits == 0x80); }
// 0 0.5 1 1.5 2 3 4 6 are half of 0 1 2 3 4 6 8 12.
constexpr float decoded(e2m1x2 x, int second) {
  const int code = x.bits >> 4 * second & 15;
  const float magnitude = 0.5f * float(0xc8643210u >> 4 * (code & 7) & 15);
  return code & 8 ? -magnitude : magnitude;
}

// The largest number of fp8.
template <class C>
constexpr float kMost = __is_same(C, e4m3fnuz) ? 240 : 448;

// The nearest number of the format, ties to even; NaN stays NaN, what is beyond the largest number
// becomes that.
template <class C>
C encoded(float x) {
  constexpr bool kFnuz = __is_same(C, e4m3fnuz);
  constexpr int kBias = kFnuz ? 8 : 7;
  constexpr uint32_t kLeast = uint32_t(128 - kBias) << 23;  // the least that is not subnormal
  // Where a number's last place is that of the subnormal ones; rounds them.
  constexpr float kShift = kFnuz ? 0x1p13f : 0x1p14f;
  const uint32_t bits = __builtin_bit_cast(uint32_t, x), magnitude = bits & 0x7fffffff;
  const uint32_t number = least(magnitude, __builtin_bit_cast(uint32_t, kMost<C>));
  const uint32_t normal = ((number + 0x7ffff + (number >> 20 & 1)) >> 20) - ((127 - kBias) << 3);
  const uint32_t shifted = __builtin_bit_cast(uint32_t, __builtin_bit_cast(float, number) + kShift);
  uint32_t code = number < kLeast ? shifted - __builtin_bit_cast(uint32_t, kShift) : normal;
  // fnuz has no -0.
  code |= bits >> 24 & 0x80 & (kFnuz ? (0u - code) >> 24 : 0x80);
  return {uint8_t(magnitude > 0x7f800000 ? kFnuz ? 0x80 : 0x7f : code)};
}

// A row of weights with scales, from a multiple of kDepth on.
template <class W>
struct ScaledRow {
  typedef Format<W> Layout;
  const W* codes;
  const typename Layout::Scale* scales;

  ScaledRow operator+(int k) const {
    return {codes + k / Layout::kPerByte, scales + k / Layout::kDepth};
  }
  float operator[](int k) const {
    const W code = codes[k / Layout::kPerByte];
    const float scale = decoded(scales[k / Layout::kDepth]);
    if constexpr (Layout::kPerByte == 2)
      return decoded(code, k % 2) * scale;
    else
      return decoded(code) * scale;
  }
};

template <class W>
using ScaleView = View<const typename Format<W>::Scale, 2>;

// Row `row` of matrix `matrix`: its numbers, or a ScaledRow.
template <class W>
auto row_of(const View<const W, 2>& weights, const ScaleView<W>& scales, int64_t matrix, int row) {
  if constexpr (Format<W>::kScaled)
    return ScaledRow<W>{weights.at(matrix, row), scales.at(matrix, row / Format<W>::kRows)};
  else
    return weights.at(matrix, row);
}

}  // namespace blockdraft
