// What a lane holds of a row of weights: 16 bytes at a time, as they lie, which become operand
// fragments when they are multiplied. In which order a product takes the depth is free, so that a
// lane's 16 bytes are neighbours in every format, and those of MXFP4 share a scale.
#pragma once

#include "base/formats.h"
#include "tile/cdna/codes.h"
#include "tile/cdna/group.h"

namespace blockdraft::cdna {

// Of kSteps fragments of a lane, from element k on of a row of so many; run r is the 16 bytes from
// element k + r * 4 * kRun on. `load` asks for them; `settle`, which waits for what came, makes zeros
// of those beyond the row's end. kWhole: there are none.
template <class T, class W, int kSteps>
struct HeldWeights {
  typedef typename Mma<T>::Fragment Fragment;
  static constexpr int kRun = 16 / sizeof(T);

  Fragment runs[kSteps];
  int left;  // elements from k on

  template <bool kWhole>
  void load(const T* row, int k, int depth) {
    typedef const __attribute__((address_space(1))) Fragment Global;
    left = depth - k;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int at = s * 4 * kRun;
      runs[s] = __builtin_nontemporal_load((Global*)(row + (kWhole || at < left ? k + at : 0)));
    }
  }
  template <bool kWhole>
  void settle() {
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
      if (!kWhole) runs[s] = s * 4 * kRun < left ? runs[s] : Fragment{};
  }
  void forget() {}
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
  static_assert(kRuns == 1 || Layout::kDepth == 4 * kRun * kRuns);  // which share a scale

  word4 runs[kRuns];
  uint32_t scale;  // as it is stored, then the bits of a float
  int left;

  template <bool kWhole>
  void load(const ScaledRow<W>& row, int k, int depth) {
    typedef const __attribute__((address_space(1))) word4 Global;
    left = depth - k;
    scale = bits_of(*global((row + (kWhole || 0 < left ? k : 0)).scales));
#pragma unroll
    for (int r = 0; r < kRuns; ++r) {
      const int at = r * 4 * kRun;
      const auto from = row + (kWhole || at < left ? k + at : 0);
      runs[r] = __builtin_nontemporal_load((Global*)from.codes);
    }
  }
  template <bool kWhole>
  void settle() {
    scale = __builtin_bit_cast(uint32_t, decoded(scale_of(scale)));
#pragma unroll
    for (int r = 0; r < kRuns; ++r)
      if (!kWhole) runs[r] = r * 4 * kRun < left ? runs[r] : word4{};
  }
  // The fragments are converted again, since there is no room to keep them.
  void forget() {
#pragma unroll
    for (int r = 0; r < kRuns; ++r) asm volatile("" : "+v"(runs[r]));
  }
  short8 fragment(int s) const {
    const word4 run = runs[s / kFragments];
    const float factor = __builtin_bit_cast(float, scale);
    if constexpr (Layout::kPerByte == 2)
      return of_nibbles(run[s % 4], factor);
    else
      return of_bytes(run[s % 2 * 2], run[s % 2 * 2 + 1], factor);
  }

 private:
  typedef typename Layout::Scale Scale;
  static uint32_t bits_of(float scale) { return __builtin_bit_cast(uint32_t, scale); }
  static uint32_t bits_of(e8m0 scale) { return scale.bits; }
  static Scale scale_of(uint32_t bits) {
    if constexpr (sizeof(Scale) == 1)
      return {uint8_t(bits)};
    else
      return __builtin_bit_cast(float, bits);
  }

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
