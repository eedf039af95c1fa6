// State after the accepted verify row, for all layers of a request: the kernel body, written
// against the tile layer. It only moves bits, in units of type U (16 bytes where everything is
// aligned to them).
#pragma once

#include "tile/tile.h"

namespace blockdraft {

typedef uint64_t Bits128 __attribute__((vector_size(16)));

template <class U>
struct CommitParams {
  const U *qk, *v_late;  // [layers][rows][channels], [layers][rows][half]
  U *conv_state,
      *late_state;  // [layers][slots][depth][channels], oldest first; [layers][slots][half]
  int64_t qk_layer, qk_row, v_layer, v_row, conv_layer, conv_slot, conv_tap, late_layer,
      late_slot;  // strides in units
  const int32_t *accepted, *cu_rows, *slots;
  int32_t* prefix_lens;
  int batch, layers, channels, half, depth;  // channels and half in units

  template <class F>
  void each_pointer(F f) {
    f(qk), f(v_late), f(conv_state), f(late_state), f(accepted), f(cu_rows), f(slots),
        f(prefix_lens);
  }
};

// One group does a request, since all of it depends on the prefix length that it then changes.
template <class Group, class U>
void commit(Group& group, const CommitParams<U>& p, int request) {
  const int accepted = p.accepted[request], slot = p.slots[request], first = p.cu_rows[request];
  if (accepted < 0) return;
  const bool fresh = p.prefix_lens[request] == 0;  // what its slot holds is another request's
  if (slot >= 0) {
    group.each(p.layers, p.channels, [&](int layer, int channel) {
      U* state = p.conv_state + layer * p.conv_layer + slot * p.conv_slot + channel;
      const U* rows = p.qk + layer * p.qk_layer + first * p.qk_row + channel;
      for (int tap = 0; tap < p.depth;
           ++tap) {  // ascending: a tap is read before it is overwritten
        const int row = accepted - p.depth + 1 + tap;
        state[tap * p.conv_tap] = row >= 0 ? rows[row * p.qk_row]
                                  : fresh  ? U{}
                                           : state[(p.depth + row) * p.conv_tap];
      }
    });
    group.each(p.layers, p.half, [&](int layer, int channel) {
      p.late_state[layer * p.late_layer + slot * p.late_slot + channel] =
          p.v_late[layer * p.v_layer + (first + accepted) * p.v_row + channel];
    });
  }
  group.barrier();
  if (group.leader()) p.prefix_lens[request] += accepted + 1;
}

}  // namespace blockdraft
