// What the checks share: dispatch by element type and by target, threads for the CPU's launchers.
#pragma once

#include <thread>

#include "base/formats.h"
#include "base/parallel.h"
#include "tile/cpu/group.h"
#include "tile/sim/group.h"

namespace blockdraft {
namespace {

// Calls f(T{}) for the code of an element type.
template <class F>
void with_type(int type, F f) {
  if (type == 0) f(float{});
  if (type == 1) f(bf16{});
  if (type == 2) f(fp16{});
}

// Calls f(T{}, C{}) for the codes of an element type and of a cache's: 0 the same, 1 e4m3fn,
// 2 e4m3fnuz.
template <class F>
void with_cache_type(int type, int format, F f) {
  with_type(type, [&](auto row) {
    if (format == 0) f(row, row);
    if (format == 1) f(row, e4m3fn{});
    if (format == 2) f(row, e4m3fnuz{});
  });
}

// Every wave of so many groups of sim calls body(group, id).
template <class Body>
void on_sim_groups(int64_t groups, uint64_t seed, int dropped, Body body) {
  sim::Scheduler scheduler(seed, dropped);
  scheduler.run(
      groups, [] { return sim::NoMemory(); },
      [&](const sim::Wave& wave, sim::NoMemory&, int64_t id) {
        sim::Group group(wave);
        body(group, id);
      });
}

// Every wave of a group of the target calls body(group).
template <class Body>
void with_group(int target, uint64_t seed, int dropped, Body body) {
  if (target == 0) {
    cpu::Group group;
    body(group);
    return;
  }
  on_sim_groups(1, seed, dropped, [&](sim::Group& group, int64_t) { body(group); });
}

inline void on_two_threads(int64_t n, int64_t, const Parallel::Part& body) {
  std::thread other([&] { body(0, n / 2); });
  body(n / 2, n);
  other.join();
}

inline Parallel two_threads() { return {on_two_threads, 2, 0}; }

// The launches of a schedule, as pairs of a step and its groups.
struct Launches {
  int64_t* out;
  int count = 0;
  template <auto kStep>
  void operator()(int64_t groups) {
    out[2 * count] = int64_t(kStep);
    out[2 * count++ + 1] = groups;
  }
};

}  // namespace
}  // namespace blockdraft
