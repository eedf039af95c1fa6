// The tile layer for CDNA 3 and 4 (gfx942, gfx950), freestanding: compiler builtins only.
//
// A group is a workgroup of eight waves, two on each SIMD, so that one's softmax hides behind the
// other's MFMA. A wave has one panel of 32 columns: column l % 32 belongs to lanes l and l ^ 32.
// S^T = K Q^T by 32x32 MFMA leaves in the register i of lane l key 8 (i / 4) + 4 (l / 32) + i % 4
// of column l % 32, which is already the B operand of O^T += V^T P^T if V^T's keys stand in that
// order: V is transposed and permuted on its way through LDS, and P never leaves registers. An
// operand fragment is 16 bytes: two (gfx942, 16 bit), one (gfx950, 16 bit) or four (fp32) MFMAs.
#pragma once

#include "tile.h"

namespace blockdraft::cdna {

constexpr int kWave = 64, kWaves = 8, kThreads = kWave * kWaves, kColumns = 32;

typedef float acc16 __attribute__((ext_vector_type(16)));
typedef float float4 __attribute__((ext_vector_type(4)));
typedef short short4 __attribute__((ext_vector_type(4)));
typedef short short8 __attribute__((ext_vector_type(8)));
typedef _Float16 half4 __attribute__((ext_vector_type(4)));
typedef _Float16 half8 __attribute__((ext_vector_type(8)));
typedef __bf16 bfloat8 __attribute__((ext_vector_type(8)));
typedef uint32_t word4 __attribute__((ext_vector_type(4)));

// Element types: the fragment, and D += A B for one.
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
  // Of values >= 0, to nearest: ties go up, which on gfx942 saves three of four instructions.
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
  static short8 pack(acc16 p, int first) {
    half8 out;
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] = _Float16(p[first + i]);
    return __builtin_bit_cast(short8, out);
  }
};

inline void from_float(float* p, float x) { *p = x; }
inline void from_float(bf16* p, float x) { p->bits = __builtin_bit_cast(uint16_t, __bf16(x)); }
inline void from_float(fp16* p, float x) { p->bits = __builtin_bit_cast(uint16_t, _Float16(x)); }

template <class P>
P* global(P* p) {  // spares the look at which memory it points to
  return (P*)(__attribute__((address_space(1))) P*)p;
}

inline int thread_index() { return __builtin_amdgcn_workitem_id_x(); }
inline float from_other_half(float x) {  // of lane l ^ 32
  const int other = ((thread_index() & (kWave - 1)) ^ 32) << 2;
  return __builtin_bit_cast(float, __builtin_amdgcn_ds_bpermute(other, __builtin_bit_cast(int, x)));
}

// A kernel of workgroups of so many threads, so many waves of which share a SIMD.
#define BLOCKDRAFT_KERNEL(threads, waves)                                                \
  __attribute__((global)) __attribute__((amdgpu_flat_work_group_size(threads, threads))) \
  __attribute__((amdgpu_waves_per_eu(waves, waves))) void

// Workgroups go to the 8 XCDs in turn; this numbering gives each XCD a contiguous part, so that
// neighbours meet in its L2.
inline int64_t contiguous_per_xcd(int64_t groups) {
  const int64_t block = __builtin_amdgcn_workgroup_id_x();
  return block % 8 * ceil_div<int64_t>(groups, 8) + block / 8;
}

template <int kThreadsOfGroup>
class Group {
 public:
  template <class F>
  void each(int n, F f) const {
    for (int i = thread_index(); i < n; i += kThreadsOfGroup) f(i);
  }
  template <class F>
  void each(int m, int n, F f) const {
    each(m * n, [&](int i) { f(i / n, i % n); });
  }
  template <class Weight, class Term, class F>
  void combine(int n, int terms, Weight weight, Term term, F f) const {
    each(n, [&](int i) { f(i, weighted_sum(i, terms, weight, term)); });
  }
  bool leader() const { return thread_index() == 0; }
  static int uniform(int x) { return __builtin_amdgcn_readfirstlane(x); }
  void barrier() const {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
    __builtin_amdgcn_s_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
  }
  template <class T>
  static void store(T* p, float x) {
    from_float(p, x);
  }
};

template <class T, class X, int kDim>
class Tile : public Group<kThreads> {
  typedef typename Mma<T>::Fragment Fragment;
  static constexpr int kFragment = 16 / sizeof(T);  // elements
  static constexpr int kKeyStride = kDim + kFragment,
                       kValueStride = 32 + kFragment;  // padded: rows begin in other banks
  static constexpr int kUnits =
      16 * kDim / kFragment;  // staging: two keys' fragments, of K or of V
  static constexpr int kUnitsOfThread = (2 * kUnits + kThreads - 1) / kThreads;

 public:
  static constexpr int kKeys = 32,
                       kBuffers = sizeof(T) == 2
                                      ? 2
                                      : 1;  // 64 KiB of LDS hold one fp32 tile of head dim 128
  static constexpr int kGroupColumns = kWaves * kColumns;

  struct Memory {                                       // in LDS
    alignas(16) T keys[kBuffers * kKeys * kKeyStride];  // [buffer][key][dim]
    alignas(16) T values[kBuffers * kDim *
                         kValueStride];  // [buffer][dim][key, in the order of a score register]
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
    panel_.top = kLowest, panel_.sum = 0;
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
#pragma unroll
      for (int i = 0; i < 2;
           ++i) {  // rows beyond n repeat the last: they are masked, and must be finite where it is
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

  template <class F>
  void each_score(const Panel& panel, F f) const {
#pragma unroll
    for (int i = 0; i < 16; ++i)
      if (panel.present && key_of(i) < staged_) f(key_of(i), panel.x, panel.scores[i]);
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
#pragma unroll
    for (int i = 0; i < 16; ++i) p[i] = __builtin_amdgcn_exp2f(panel.scores[i] - top);
    if (__builtin_amdgcn_ballot_w64(top > panel.top)) {
      const float shrink = __builtin_amdgcn_exp2f(panel.top - top);
#pragma unroll
      for (int d = 0; d < kDim / 32; ++d) panel.output[d] *= shrink;
      panel.sum *= shrink;
      panel.top = top;
    }
    const auto eight = p.lo + p.hi;
    const auto four = eight.lo + eight.hi;
    panel.sum +=
        four.x + four.y + (four.z + four.w);  // of this lane's keys; close adds the other half's
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

  // f(unit of this thread, whether it stages values or keys, row, dim): two rows from `row`, a
  // fragment from `dim`. A wave stages either keys or values.
  template <class F>
  static void each_unit(F f) {
#pragma unroll
    for (int u = 0; u < kUnitsOfThread; ++u) {
      const int first = wave() * kWave + u * kThreads, unit = first + lane();
      if (2 * kUnits % kThreads == 0 || first < 2 * kUnits)
        f(u, first < kUnits, unit % 16 * 2, unit / 16 % (kDim / kFragment) * kFragment);
    }
  }

  static Fragment read(const T* p) {
    return *(const __attribute__((address_space(1))) Fragment*)p;
  }  // of global memory

  static int wave() { return __builtin_amdgcn_readfirstlane(thread_index() / kWave); }
  static int lane() { return thread_index() & (kWave - 1); }
  static int half() { return lane() >> 5; }
  static int key_of(int i) {
    return 8 * (i / 4) + 4 * half() + i % 4;
  }  // row of a score or output register

  Memory& memory_;
  Panel panel_;
  float scale_;
  bool active_;
  int staged_ = 0, buffer_ = 0;
  int places_[kUnitsOfThread][2];
  Fragment data_[kUnitsOfThread][2];
};

}  // namespace blockdraft::cdna
