// Number types and the small arithmetic that every kernel shares.
#pragma once

#include <stdint.h>

namespace blockdraft {

// 16-bit floating point as stored; arithmetic is fp32.
struct bf16 {
  uint16_t bits;
};
struct fp16 {
  uint16_t bits;
};

// Numbers that are computed with at once.
typedef float two __attribute__((vector_size(8)));
typedef float four __attribute__((vector_size(16)));
typedef float eight __attribute__((vector_size(32)));

// The even and the odd elements of a vector.
template <class Half>
struct Unzipped {
  Half even, odd;
};

inline float sum_of(eight x) {
  four low, high;
  __builtin_memcpy(&low, &x, sizeof low);
  __builtin_memcpy(&high, reinterpret_cast<const char*>(&x) + sizeof low, sizeof high);
  const four y = low + high;
  return (y[0] + y[1]) + (y[2] + y[3]);
}

// x, brought within 126 of 0, so that its power of two and the inverse of that are normal numbers.
// Comparisons keep NaN.
template <class V>
V clamped_power(V x) {
  x = x > 126 ? V{} + 126 : x;
  return x < -126 ? V{} - 126 : x;
}

constexpr double kLog2e = 1.4426950408889634;

template <class N>
constexpr N least(N a, N b) {
  return a < b ? a : b;
}
template <class N>
constexpr N most(N a, N b) {
  return a > b ? a : b;
}
template <class N>
constexpr N ceil_div(N a, N b) {
  return (a + b - 1) / b;
}

// Part i of a division into parts whose counts differ by at most one.
struct Part {
  int first, count;
};
constexpr Part part_of(uint32_t count, uint32_t parts, int i) {
  const int share = count / parts, extra = count % parts;
  return {i * share + least(i, extra), share + (i < extra)};
}

}  // namespace blockdraft
