// What a lane holds of a row of weights: 16 bytes at a time, as they lie, which become operand
// fragments when they are multiplied. In which order a product takes the depth is free, so that a
// lane's 16 bytes are neighbours in every format, and those of MXFP4 share a scale.
#pragma once

#include "base/formats.h"
#include "tile/cdna/codes.h"
#include "tile/cdna/group.h"

namespace blockdraft::cdna {

// Of kSteps fragments of a lane; run r is the 16 bytes from element r * 4 * kRun on.
template <class T, class W, int kSteps>
struct HeldWeights {
  typedef typename Mma<T>::Fragment Fragment;
  static constexpr int kRun = 16 / sizeof(T);

  Fragment runs[kSteps];

  template <class At>
  void load(const T* row, At at, int depth) {
    typedef const __attribute__((address_space(1))) Fragment Global;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int k = at(s);
      const Fragment x = __builtin_nontemporal_load((Global*)(row + (k < depth ? k : 0)));
      runs[s] = k < depth ? x : Fragment{};
    }
  }
  Fragment fragment(int s) const { return runs[s]; }
};

// Weights with scales; T is bf16. A product by the scale of fp8 is rounded to bf16.
template <class W, int kSteps>
  requires Format<W>::kScaled
struct HeldWeights<bf16, W, kSteps> {
  typedef Format<W> Layout;
  static constexpr int kRun = 16 * Layout::kPerByte;
  static constexpr int kFragments = kRun / 8;  // of a run
  static constexpr int kRuns = kSteps / kFragments;
  static_assert(kSteps % kFragments == 0);

  word4 runs[kRuns];
  float scales[kRuns];

  template <class At>
  void load(const ScaledRow<W>& row, At at, int depth) {
    typedef const __attribute__((address_space(1))) word4 Global;
#pragma unroll
    for (int r = 0; r < kRuns; ++r) {
      const int k = at(r * kFragments);
      const auto from = row + (k < depth ? k : 0);
      const word4 x = __builtin_nontemporal_load((Global*)from.codes);
      runs[r] = k < depth ? x : word4{};
      scales[r] = decoded(*global(from.scales));
    }
  }
  short8 fragment(int s) const {
    const word4 run = runs[s / kFragments];
    const float scale = scales[s / kFragments];
    if constexpr (Layout::kPerByte == 2)
      return of_nibbles(run[s % 4], scale);
    else
      return of_bytes(run[s % 2 * 2], run[s % 2 * 2 + 1], scale);
  }

 private:
  // By the device's own conversions: e4m3fnuz on gfx942, e4m3fn on gfx950.
  static short8 of_bytes(uint32_t first, uint32_t second, float scale) {
    word4 out;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t four = i ? second : first;
      const auto low = __builtin_amdgcn_cvt_pk_f32_fp8(four, false) * scale;
      const auto high = __builtin_amdgcn_cvt_pk_f32_fp8(four, true) * scale;
      out[2 * i] = packed(low[0], low[1]);
      out[2 * i + 1] = packed(high[0], high[1]);
    }
    return __builtin_bit_cast(short8, out);
  }

  static short8 of_nibbles(uint32_t eight, float scale) {
    word4 out;
#if defined(__gfx950__)
    out[0] =
        __builtin_bit_cast(uint32_t, __builtin_amdgcn_cvt_scalef32_pk_bf16_fp4(eight, scale, 0));
    out[1] =
        __builtin_bit_cast(uint32_t, __builtin_amdgcn_cvt_scalef32_pk_bf16_fp4(eight, scale, 1));
    out[2] =
        __builtin_bit_cast(uint32_t, __builtin_amdgcn_cvt_scalef32_pk_bf16_fp4(eight, scale, 2));
    out[3] =
        __builtin_bit_cast(uint32_t, __builtin_amdgcn_cvt_scalef32_pk_bf16_fp4(eight, scale, 3));
#else
    // A table of the eight magnitudes times the scale, which are exact in bf16: bytes 2 and 3.
    uint32_t low[2], high[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint32_t x[4];
#pragma unroll
      for (int j = 0; j < 4; ++j)
        x[j] = __builtin_bit_cast(uint32_t, decoded(e2m1x2{uint8_t(4 * i + j)}, 0) * scale);
      const uint32_t a = __builtin_amdgcn_perm(x[1], x[0], 0x07030602);
      const uint32_t b = __builtin_amdgcn_perm(x[3], x[2], 0x07030602);
      low[i] = __builtin_amdgcn_perm(b, a, 0x05040100);
      high[i] = __builtin_amdgcn_perm(b, a, 0x07060302);
    }
    // The first four words have the even numbers' halves, the others the odd ones'.
    uint32_t pairs[2][2];
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const uint32_t codes = odd ? eight >> 4 : eight, index = codes & 0x07070707;
      const uint32_t x = __builtin_amdgcn_perm(low[1], low[0], index);
      const uint32_t y = __builtin_amdgcn_perm(high[1], high[0], index) | (codes & 0x08080808) << 4;
      pairs[odd][0] = __builtin_amdgcn_perm(y, x, 0x05010400);
      pairs[odd][1] = __builtin_amdgcn_perm(y, x, 0x07030602);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      out[2 * i] = __builtin_amdgcn_perm(pairs[1][i], pairs[0][i], 0x05040100);
      out[2 * i + 1] = __builtin_amdgcn_perm(pairs[1][i], pairs[0][i], 0x07060302);
    }
#endif
    return __builtin_bit_cast(short8, out);
  }
};

}  // namespace blockdraft::cdna
