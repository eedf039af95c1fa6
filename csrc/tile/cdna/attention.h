// The attention tile of CDNA 3 and 4 (gfx942, gfx950).
//
// A group is a workgroup of eight waves, two on each SIMD, so that one's softmax overlaps with the
// other's MFMAs. A wave has one panel of 32 columns: column l % 32 belongs to lanes l and l ^ 32.
// After S^T = K Q^T by 32x32 MFMA, register i of lane l holds key 8 (i / 4) + 4 (l / 32) + i % 4 of
// column l % 32. That is already the B operand of O^T += V^T P^T if the keys of V^T have the same
// order, so V is transposed and permuted on its way through LDS, and P never leaves registers.
#pragma once

#include "tile/attention.h"
#include "tile/cdna/group.h"
#include "tile/cdna/mfma.h"

namespace blockdraft::cdna {

inline float from_other_half(float x) {  // of lane l ^ 32
  const int other = ((thread_index() & (kWave - 1)) ^ 32) << 2;
  return __builtin_bit_cast(float, __builtin_amdgcn_ds_bpermute(other, __builtin_bit_cast(int, x)));
}

template <class T, class X, int kDim>
class Tile : public Group<kThreads> {
  typedef typename Mma<T>::Fragment Fragment;
  static constexpr int kFragment = 16 / sizeof(T);  // elements
  // Padded, so that rows begin in different banks.
  static constexpr int kKeyStride = kDim + kFragment, kValueStride = 32 + kFragment;
  // A unit of staging is a fragment of two rows of K or of V.
  static constexpr int kUnits = 16 * kDim / kFragment;
  static constexpr int kUnitsOfThread = (2 * kUnits + kThreads - 1) / kThreads;

 public:
  // 64 KiB of LDS hold only one fp32 tile of head dim 128.
  static constexpr int kKeys = 32, kBuffers = sizeof(T) == 2 ? 2 : 1;
  static constexpr int kGroupColumns = kWaves * kColumns;
  static constexpr bool kReadsCodes = false;

  struct Memory {                                       // in LDS
    alignas(16) T keys[kBuffers * kKeys * kKeyStride];  // [buffer][key][dim]
    // [buffer][dim][key, in the order of the score registers]
    alignas(16) T values[kBuffers * kDim * kValueStride];
  };

  struct Panel {
    X x;
    bool present;
    Fragment queries[kDim / (2 * kFragment)];
    acc16 output[kDim / 32], scores;
    float top, sum;

    template <class F>
    bool any(F f) const {
      return __builtin_amdgcn_ballot_w64(present && f(x)) != 0;
    }
  };

  explicit Tile(Memory& memory) : memory_(memory) {}

  template <class Describe, class Query>
  void open(int n, Describe x, Query query, float scale) {
    const int first = wave() * kColumns, column = first + lane() % kColumns;
    scale_ = scale;
    active_ = first < n;
    panel_.present = column < n;
    panel_.x = x(least(column, n - 1));
    const T* src = query(panel_.x);
#pragma unroll
    for (int c = 0; c < kDim / (2 * kFragment); ++c) {
      panel_.queries[c] = Fragment{};
      if (src && panel_.present) panel_.queries[c] = read(src + (2 * c + half()) * kFragment);
    }
#pragma unroll
    for (int d = 0; d < kDim / 32; ++d) panel_.output[d] = acc16{};
    panel_.top = -__builtin_inff();
    panel_.sum = 0;
  }

  template <class Place>
  void locate(Place place, int n) {
    each_unit([&](int u, bool, int row, int) {
#pragma unroll
      for (int i = 0; i < 2; ++i) places_[u][i] = place(least(row + i, n - 1));
    });
  }

  template <class Key, class Value>
  void load(Key key, Value value, int n) {
    each_unit([&](int u, bool of_values, int row, int dim) {
    // Rows beyond n repeat the last row. They are masked, but NaN from elsewhere would reach the
    // output as 0 * NaN.
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int at = least(row + i, n - 1);
        data_[u][i] =
            read(of_values ? value(places_[u][i], at) + dim : key(places_[u][i], at) + dim);
      }
    });
  }

  void deposit(int n) {
    if constexpr (kBuffers == 2) buffer_ ^= 1;
    staged_ = n;
    T *keys = memory_.keys + key_buffer(), *values = memory_.values + value_buffer();
    each_unit([&](int u, bool of_values, int row, int dim) {
      if (!of_values) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
          *reinterpret_cast<Fragment*>(keys + (row + i) * kKeyStride + dim) = data_[u][i];
        return;
      }
      const Fragment first = data_[u][0], second = data_[u][1];
      const int place = (row >> 2 & 1) * 16 + (row >> 3) * 4 + (row & 3);  // half, register
#pragma unroll
      for (int j = 0; j < kFragment; ++j) {
        const typename Mma<T>::Pair pair = {first[j], second[j]};
        *reinterpret_cast<typename Mma<T>::Pair*>(values + (dim + j) * kValueStride + place) = pair;
      }
    });
  }

  template <class F>
  void each_panel(F f) {
    if (active_) f(panel_);
  }

  void scores(Panel& panel) const {
    const T* row = memory_.keys + key_buffer() + lane() % 32 * kKeyStride + half() * kFragment;
    acc16 s{};
#pragma unroll
    for (int c = 0; c < kDim / (2 * kFragment); ++c)
      s = Mma<T>::multiply(*reinterpret_cast<const Fragment*>(row + c * 2 * kFragment),
                           panel.queries[c], s);
    s *= scale_;
    if (staged_ < kKeys) {
#pragma unroll
      for (int i = 0; i < 16; ++i) s[i] = key_of(i) < staged_ ? s[i] : -__builtin_inff();
    }
    panel.scores = s;
  }

  template <class Visible>
  void mask(Panel& panel, Visible visible) const {
    const auto seen = visible(panel.x);
#pragma unroll
    for (int i = 0; i < 16; ++i)
      panel.scores[i] =
          key_of(i) >= seen.from && key_of(i) < seen.to ? panel.scores[i] : -__builtin_inff();
  }

  void absorb(Panel& panel) const {
    float top = panel.top;
    acc16 p;
#pragma unroll
    for (int i = 0; i < 16; ++i) top = __builtin_fmaxf(top, panel.scores[i]);
    top = __builtin_fmaxf(top, from_other_half(top));
    const float base = finite_or_zero(top);
#pragma unroll
    for (int i = 0; i < 16; ++i) p[i] = __builtin_amdgcn_exp2f(panel.scores[i] - base);
    if (__builtin_amdgcn_ballot_w64(top > panel.top)) {
      const float shrink = __builtin_amdgcn_exp2f(panel.top - base);
#pragma unroll
      for (int d = 0; d < kDim / 32; ++d) panel.output[d] *= shrink;
      panel.sum *= shrink;
      panel.top = top;
    }
    const auto eight = p.lo + p.hi;
    const auto four = eight.lo + eight.hi;
    // The sum over this lane's keys; close adds that of the other half.
    panel.sum += four.x + four.y + (four.z + four.w);
    const T* column = memory_.values + value_buffer() + lane() % 32 * kValueStride + half() * 16;
#pragma unroll
    for (int c = 0; c < 16 / kFragment; ++c) {
      const Fragment weights = Mma<T>::pack(p, c * kFragment);
#pragma unroll
      for (int d = 0; d < kDim / 32; ++d)
        panel.output[d] = Mma<T>::multiply(
            *reinterpret_cast<const Fragment*>(column + d * 32 * kValueStride + c * kFragment),
            weights, panel.output[d]);
    }
  }

  struct Output {
    const acc16* output;
    bool leader() const { return half() == 0; }
    template <class D>
    void store(D* p, float scale) const {
#pragma unroll
      for (int d = 0; d < kDim / 32; ++d)
#pragma unroll
        for (int i = 0; i < 16; i += 4) {
          D four[4];
#pragma unroll
          for (int j = 0; j < 4; ++j)
            from_float(four + j, scale == 0 ? 0.0f : scale * output[d][i + j]);
          __builtin_memcpy((__attribute__((address_space(1))) D*)p + d * 32 + key_of(i), four,
                           sizeof four);
        }
    }
  };

  template <class F>
  void close(F f) {
    if (!active_) return;
    const float sum = panel_.sum + from_other_half(panel_.sum);
    if (panel_.present) f(panel_.x, panel_.top, sum, Output{panel_.output});
  }

 private:
  int key_buffer() const { return uniform(buffer_ ? kKeys * kKeyStride : 0); }
  int value_buffer() const { return uniform(buffer_ ? kDim * kValueStride : 0); }

  // f(u, of_values, row, dim) for every unit u of this thread: rows `row` and row + 1 of the values
  // or of the keys, one fragment from `dim` on. In a unit, all lanes of a wave stage the same of
  // the two.
  template <class F>
  static void each_unit(F f) {
#pragma unroll
    for (int u = 0; u < kUnitsOfThread; ++u) {
      const int first = wave() * kWave + u * kThreads, unit = first + lane();
      if (2 * kUnits % kThreads == 0 || first < 2 * kUnits)
        f(u, first < kUnits, unit % 16 * 2, unit / 16 % (kDim / kFragment) * kFragment);
    }
  }

  // From global memory.
  static Fragment read(const T* p) { return *(const __attribute__((address_space(1))) Fragment*)p; }

  static int wave() { return __builtin_amdgcn_readfirstlane(thread_index() / kWave); }
  static int lane() { return thread_index() & (kWave - 1); }
  static int half() { return lane() >> 5; }
  // The row that register i of the scores or of an output holds.
  static int key_of(int i) { return 8 * (i / 4) + 4 * half() + i % 4; }

  Memory& memory_;
  Panel panel_;
  float scale_;
  bool active_;
  int staged_ = 0, buffer_ = 0;
  int places_[kUnitsOfThread][2];
  Fragment data_[kUnitsOfThread][2];
};

static_assert(AttentionTarget<Tile<float, int, 64>, float, int>);

}  // namespace blockdraft::cdna
