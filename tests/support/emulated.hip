// Small kernels that show what the emulator does of a CDNA.
#include <stdint.h>

#pragma clang force_cuda_host_device begin
#include "tile/cdna/group.h"
#pragma clang force_cuda_host_device end

using namespace blockdraft::cdna;

// Workgroups that meet in one place: each stores its number, and reads there after a barrier.
extern "C" BLOCKDRAFT_KERNEL(128, 1)
meet(int* place, int* seen) {
  Group<128> group;
  if (group.leader()) *place = group_index();
  group.barrier();
  if (group.leader()) seen[group_index()] = *place;
}

// Two waves: each writes, and reads what the other one has written, without a barrier between.
extern "C" BLOCKDRAFT_KERNEL(128, 1)
hasty(int*, int* seen) {
  __attribute__((shared)) static int memory[128];
  memory[thread_index()] = thread_index();
  asm volatile("" ::: "memory");
  seen[128 * group_index() + thread_index()] = memory[thread_index() ^ 64];
}

// seen: 2 x and whether x > 0 for 16-bit x, computed in registers beyond v127.
extern "C" BLOCKDRAFT_KERNEL(64, 1)
halves(const uint32_t* x, uint32_t* seen) {
  uint32_t sum, positive;
  asm volatile(
      "v_mov_b32_e32 v200, %2\n\t"
      "v_mov_b32_e32 v72, -1\n\t"  // which an RDNA would mean by v200 in 16 bits
      "v_add_f16_e32 v201, v200, v200\n\t"
      "v_cmp_lt_f16_e32 vcc, 0, v200\n\t"
      "v_cndmask_b32_e64 %1, 0, 1, vcc\n\t"
      "v_mov_b32_e32 %0, v201"
      : "=v"(sum), "=v"(positive)
      : "v"(x[thread_index()])
      : "v200", "v201", "v72", "vcc");
  seen[2 * thread_index()] = sum;
  seen[2 * thread_index() + 1] = positive;
}

#ifdef __gfx950__
typedef uint32_t four_words __attribute__((ext_vector_type(4)));
typedef uint16_t four_halves __attribute__((ext_vector_type(4)));

// 16 bytes a lane go to LDS; they are read before and after the wait for them.
extern "C" BLOCKDRAFT_KERNEL(64, 1)
straight(const four_words* x, four_words* seen) {
  __attribute__((shared)) static four_words memory[64];
  const int lane = thread_index();
  const int place = int(uintptr_t((__attribute__((address_space(3))) void*)memory)) + 16 * lane;
  four_words early, late;
  asm volatile(
      "s_mov_b32 m0, %3\n\t"
      "global_load_lds_dwordx4 %4, off\n\t"
      "ds_read_b128 %0, %2\n\t"
      "s_waitcnt lgkmcnt(0)\n\t"
      "s_waitcnt vmcnt(0)\n\t"
      "ds_read_b128 %1, %2\n\t"
      "s_waitcnt lgkmcnt(0)"
      : "=&v"(early), "=&v"(late)
      : "v"(place), "s"(__builtin_amdgcn_readfirstlane(place)), "v"(x + lane)
      : "memory");
  seen[2 * lane] = early;
  seen[2 * lane + 1] = late;
}

// Rows of 16 elements in LDS, read by columns.
extern "C" BLOCKDRAFT_KERNEL(64, 1)
columns(const four_halves* x, four_halves* seen) {
  __attribute__((shared)) static four_halves memory[64];
  const int lane = thread_index();
  memory[lane] = x[lane];
  const int place = int(uintptr_t((__attribute__((address_space(3))) void*)(memory + lane)));
  four_halves column;
  asm volatile("s_waitcnt lgkmcnt(0)\n\tds_read_b64_tr_b16 %0, %1\n\ts_waitcnt lgkmcnt(0)"
               : "=v"(column)
               : "v"(place)
               : "memory");
  seen[lane] = column;
}
#endif
