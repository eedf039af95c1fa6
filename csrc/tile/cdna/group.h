// A group of CDNA is a workgroup. Uses compiler builtins only, so that it compiles without HIP.
#pragma once

#include "tile/cdna/codes.h"
#include "tile/group.h"

namespace blockdraft::cdna {

constexpr int kWave = 64, kWaves = 8, kThreads = kWave * kWaves, kColumns = 32;

inline void from_float(float* p, float x) { *p = x; }
inline void from_float(bf16* p, float x) { p->bits = __builtin_bit_cast(uint16_t, __bf16(x)); }
inline void from_float(fp16* p, float x) { p->bits = __builtin_bit_cast(uint16_t, _Float16(x)); }

// The same pointer, which the compiler then knows to be to global memory: flat loads are slower.
template <class P>
P* global(P* p) {
  return (P*)(__attribute__((address_space(1))) P*)p;
}

template <class Params>
void use_global_pointers(Params& p) {
  p.each_pointer([](auto*& pointer) { pointer = global(pointer); });
}

// The start of the kernel's only argument, read again. The compiler cannot tell that it reads the
// same.
template <class Params>
Params reload() {
#ifndef __HIP_DEVICE_COMPILE__
  return {};  // never called: a host's clang cannot copy from where arguments lie
#else
  auto* arguments = __builtin_amdgcn_kernarg_segment_ptr();
  asm volatile("" : "+s"(arguments));
  Params out = *(const __attribute__((address_space(4))) Params*)arguments;
  if constexpr (requires { out.each_pointer([](auto*&) {}); }) use_global_pointers(out);
  return out;
#endif
}

inline int group_index() { return __builtin_amdgcn_workgroup_id_x(); }
inline int thread_index() { return __builtin_amdgcn_workitem_id_x(); }

// A kernel with `threads` threads in a workgroup and `waves` waves on a SIMD.
#define BLOCKDRAFT_KERNEL(threads, waves)                                                \
  __attribute__((global)) __attribute__((amdgpu_flat_work_group_size(threads, threads))) \
  __attribute__((amdgpu_waves_per_eu(waves, waves))) void

// The hardware assigns workgroups to the 8 XCDs in turn. This numbering gives each XCD a contiguous
// range, so that adjacent items share its L2.
inline int64_t contiguous_per_xcd(int64_t groups) {
  const int64_t group = group_index();
  return group % 8 * ceil_div<int64_t>(groups, 8) + group / 8;
}

template <class N>
N from_lane(N x, int lane) {
  if constexpr (sizeof(N) == 8) {
    typedef int int2 __attribute__((ext_vector_type(2)));
    int2 bits = __builtin_bit_cast(int2, x);
    bits.x = __builtin_amdgcn_ds_bpermute(lane << 2, bits.x);
    bits.y = __builtin_amdgcn_ds_bpermute(lane << 2, bits.y);
    return __builtin_bit_cast(N, bits);
  } else {
    return __builtin_bit_cast(N,
                              __builtin_amdgcn_ds_bpermute(lane << 2, __builtin_bit_cast(int, x)));
  }
}

template <int kThreadsOfGroup>
class Group {
 public:
  struct Wave {
    int lane;

    template <class F>
    void each(int n, F f) const {
      for (int i = lane; i < n; i += kWave) f(i);
    }
    template <class N, class Term, class Join>
    N fold(int n, N none, Term term, Join join) const {
      N out = none;
      for (int i = lane; i < n; i += kWave) out = join(out, term(i));
#pragma unroll
      for (int far = kWave / 2; far > 0; far /= 2) out = join(out, from_lane(out, lane ^ far));
      return out;
    }
    bool leader() const { return lane == 0; }
  };
  template <class F>
  void by_waves(int n, F f) const {
    for (int i = uniform(thread_index() / kWave); i < n; i += kThreadsOfGroup / kWave)
      f(i, Wave{thread_index() & (kWave - 1)});
  }
  template <class F>
  void each(int n, F f) const {
    for (int i = thread_index(); i < n; i += kThreadsOfGroup) f(i);
  }
  template <class F>
  void each(int m, int n, F f) const {
    each(m * n, [&](uint32_t i) { f(int(i / n), int(i % n)); });
  }
  template <class F>
  void each_of(int m, int n, F f) const {
    each(m * n, [&](uint32_t i) { f(int(i / n))(int(i % n)); });
  }
  template <class Weight, class Term, class F>
  void combine(int n, int terms, Weight weight, Term term, F f) const {
    each(n, [&](int i) { f(i, weighted_sum(i, terms, weight, term)); });
  }
  struct List {  // in the lanes of each wave
    int own;
    uint64_t used;

    int operator[](int i) const { return __builtin_amdgcn_readlane(own, i); }
    template <class Test>
    uint64_t bits(Test test) const {
      return __builtin_amdgcn_ballot_w64(test(own)) & used;
    }
  };
  template <class F>
  List list(int n, F f) const {
    const int i = thread_index() & (kWave - 1);
    return {i < n ? f(i) : 0, n < kWave ? (uint64_t(1) << n) - 1 : ~uint64_t(0)};
  }
  bool leader() const { return thread_index() == 0; }
  static int uniform(int x) { return __builtin_amdgcn_readfirstlane(x); }
  template <class T>
  static void expect(const T*, int) {}
  template <class Params>
  static Params reload(const Params&) {
    return cdna::reload<Params>();
  }
  void barrier() const {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
    __builtin_amdgcn_s_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
  }
  template <class T>
  static void store(T* p, float x) {
    from_float(p, x);
  }
  template <class T, class V>
  static void store(T* p, V x, int n) {
    constexpr int kSize = sizeof x / sizeof(float);
    T out[kSize];
#pragma unroll
    for (int j = 0; j < kSize; ++j) from_float(out + j, x[j]);
    if (n >= kSize) return void(__builtin_memcpy(p, out, sizeof out));
#pragma unroll
    for (int j = 0; j < kSize - 1; ++j)
      if (j < n) p[j] = out[j];
  }
  template <class T>
  static four values(const T* p, int n) {
    four out;
#pragma unroll
    for (int j = 0; j < 4; ++j) out[j] = j < n ? value(p[j]) : 0.0f;
    return out;
  }
  static Unzipped<two> unzip(four x) { return {two{x[0], x[2]}, two{x[1], x[3]}}; }
  template <class T>
  static void store(T* p, eight x) {
    alignas(16) T out[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) from_float(out + j, x[j]);
    __builtin_memcpy(__builtin_assume_aligned(p, 16), out, sizeof out);
  }
  template <class C>
    requires Format<C>::kScaled
  static void store(C* p, eight x) {
    const word2 codes = codes_of<C>(x);
    __builtin_memcpy(__builtin_assume_aligned(p, 8), &codes, sizeof codes);
  }
  template <class C>
    requires Format<C>::kScaled
  static eight values(const C* p) {
    word2 codes;
    __builtin_memcpy(&codes, __builtin_assume_aligned(p, 8), sizeof codes);
    return numbers_of(codes);
  }
  template <class T>
  static eight values(const T* p) {
    alignas(16) T in[8];
    __builtin_memcpy(in, __builtin_assume_aligned(p, 16), sizeof in);
    eight out;
#pragma unroll
    for (int j = 0; j < 8; ++j) out[j] = value(in[j]);
    return out;
  }
  static float value(float x) { return x; }
  static float value(bf16 x) { return __builtin_bit_cast(float, uint32_t(x.bits) << 16); }
  static float value(fp16 x) { return float(__builtin_bit_cast(_Float16, x.bits)); }
  static float exp2(float x) { return __builtin_amdgcn_exp2f(clamped_power(x)); }
  static two exp2(two x) { return two{exp2(x[0]), exp2(x[1])}; }
  static four exp2(four x) { return four{exp2(x[0]), exp2(x[1]), exp2(x[2]), exp2(x[3])}; }
};

static_assert(GroupTarget<Group<kThreads>>);

}  // namespace blockdraft::cdna
