// The simulated target runs the waves of several workgroups one at a time and continues at every
// barrier with a random wave of any of them. If a wave reads what another has not yet written or
// has already overwritten, or if workgroups share memory, the result is wrong under some seed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <semaphore>
#include <thread>
#include <vector>

namespace blockdraft::sim {

constexpr int kWaves = 4;
constexpr int kGroupsAtOnce = 3;

class Scheduler;

// A wave of a workgroup.
struct Wave {
  Scheduler& scheduler;
  int slot;   // among the waves of all workgroups that run at the same time
  int index;  // within its workgroup
  void barrier() const;
};

class Scheduler {
 public:
  // `dropped`: the barrier that every wave skips, counted from 0; -1: none.
  Scheduler(uint64_t seed, int dropped) : random_(seed), dropped_(dropped) {}

  // Every wave of every workgroup calls body(wave, memory, group); memory() makes what the waves of
  // a workgroup share.
  template <class Memory, class Body>
  void run(int64_t groups, Memory memory, Body body) {
    for (int64_t first = 0; first < groups; first += kGroupsAtOnce)
      run_some(first, int(std::min<int64_t>(groups - first, kGroupsAtOnce)), memory, body);
  }

  void barrier(int slot) {
    if (waves_[slot].barriers++ == dropped_) return;
    hand_over(slot, State::kWaits);
    waves_[slot].turn.acquire();
  }

 private:
  enum class State { kReady, kWaits, kEnded };
  struct Slot {
    State state = State::kReady;
    int barriers = 0;
    std::binary_semaphore turn{0};
  };

  template <class Memory, class Body>
  void run_some(int64_t first, int groups, Memory memory, Body body) {
    std::vector<decltype(memory())> shared;
    for (int g = 0; g < groups; ++g) shared.push_back(memory());
    waves_ = std::vector<Slot>(groups * kWaves);
    std::vector<std::thread> threads;
    for (int slot = 0; slot < groups * kWaves; ++slot)
      threads.emplace_back([&, slot] {
        waves_[slot].turn.acquire();
        body(Wave{*this, slot, slot % kWaves}, shared[slot / kWaves], first + slot / kWaves);
        hand_over(slot, State::kEnded);
      });
    start_next();
    for (auto& thread : threads) thread.join();
  }

  // The wave has reached a barrier or its end, so another one runs. Only one runs at a time, so
  // nothing needs a lock.
  void hand_over(int slot, State state) {
    waves_[slot].state = state;
    open_barrier(slot / kWaves * kWaves);
    start_next();
  }

  // Makes the waves of a workgroup ready once all of them are at the barrier.
  void open_barrier(int first) {
    int waiting = 0;
    int ended = 0;
    for (int slot = first; slot < first + kWaves; ++slot) {
      waiting += waves_[slot].state == State::kWaits;
      ended += waves_[slot].state == State::kEnded;
    }
    if (waiting + ended < kWaves || waiting == 0) return;
    if (ended && dropped_ < 0) {  // for want of a barrier waves may go different ways
      std::fprintf(stderr, "sim: a wave passes a barrier that others do not\n");
      std::abort();
    }
    for (int slot = first; slot < first + kWaves; ++slot)
      if (waves_[slot].state == State::kWaits) waves_[slot].state = State::kReady;
  }

  void start_next() {
    std::vector<int> ready;
    for (int slot = 0; slot < int(waves_.size()); ++slot)
      if (waves_[slot].state == State::kReady) ready.push_back(slot);
    if (!ready.empty()) waves_[ready[random_() % ready.size()]].turn.release();
  }

  std::mt19937_64 random_;
  std::vector<Slot> waves_;
  int dropped_;
};

inline void Wave::barrier() const { scheduler.barrier(slot); }

// For bodies whose waves share no memory.
struct NoMemory {};

}  // namespace blockdraft::sim
