// What the checks share: dispatch by element type and by target.
#pragma once

#include <thread>

#include "parallel.h"
#include "tile/host.h"
#include "tile/sim.h"

namespace blockdraft {
namespace {

// f(T{}) by the code of an element type.
template <class F>
void with_type(int type, F f) {
  if (type == 0) f(float{});
  if (type == 1) f(bf16{});
  if (type == 2) f(fp16{});
}

template <class Body>
void with_group(int target, uint64_t seed, int dropped, Body body) {
  if (target == 0) {
    host::Group group;
    body(group);
    return;
  }
  sim::Scheduler scheduler(seed, dropped);
  scheduler.run([&](int wave) {
    sim::Group group(scheduler, wave);
    body(group);
  });
}

void threads(int64_t n, int64_t, const std::function<void(int64_t, int64_t)>& body) {
  std::thread other([&] { body(0, n / 2); });
  body(n / 2, n);
  other.join();
}

}  // namespace
}  // namespace blockdraft
