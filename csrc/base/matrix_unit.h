// Whether a CPU has a matrix unit (AMX) that multiplies bf16.
#pragma once

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace blockdraft {

// Also asks the kernel to let this process use it, whose threads then save more registers.
inline bool has_matrix_unit() {
#if defined(__x86_64__) && defined(__linux__)
  static const bool found = [] {
    unsigned a, b, c, d;
    constexpr unsigned kTiles = 1u << 24, kProducts = 1u << 22;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (~d & (kTiles | kProducts))) return false;
    constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
    return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  }();
  return found;
#else
  return false;
#endif
}

}  // namespace blockdraft
