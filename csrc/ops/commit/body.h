// Kernel body of commit, on the tile layer: stores the state after the last accepted verify row,
// for all layers of a request. It copies bits without arithmetic.
#pragma once

#include "ops/commit/params.h"
#include "tile/group.h"

namespace blockdraft {

enum class CommitStep { kCommit };

// Calls run<step>(groups) for each launch.
template <class U, class Run>
void schedule(const CommitParams<U>& p, Run run) {
  run.template operator()<CommitStep::kCommit>(p.batch);
}

// One group does a whole request, because every element depends on the prefix length, which is
// changed at the end.
template <class Group, class U>
void commit(Group& group, const CommitParams<U>& p, int request) {
  const int accepted = p.accepted[request];
  const int slot = p.slots[request];
  const int first = p.cu_rows[request];
  if (accepted < 0) return;
  const bool fresh = p.prefix_lens[request] == 0;  // the slot still holds another request's state
  if (slot >= 0) {
    group.each(p.layers, p.channels, [&](int layer, int channel) {
      const U* rows = p.qk.at(layer, first) + channel;
      U* state = p.conv_state.at(layer, slot) + channel;
      const int64_t tap_stride = p.conv_state.stride[2];
      for (int tap = 0; tap < p.depth;
           ++tap) {  // ascending: a tap is read before it is overwritten
        const int row = accepted - p.depth + 1 + tap;
        state[tap * tap_stride] = row >= 0 ? rows[row * p.qk.stride[1]]
                                  : fresh  ? U{}
                                           : state[(p.depth + row) * tap_stride];
      }
    });
    group.each(p.layers, p.half, [&](int layer, int channel) {
      p.late_state.at(layer, slot)[channel] = p.v_late.at(layer, first + accepted)[channel];
    });
  }
  group.barrier();
  if (group.leader()) p.prefix_lens[request] += accepted + 1;
}

}  // namespace blockdraft
