"""The state after the last accepted verify row: convolution state, delayed value and prefix
length."""

import torch


def commit(qk, v_late, accepted, cu_rows, prefix_lens, conv_state, late_state, slots):
    """The new (prefix_lens, conv_state, late_state) for all layers. A request with accepted -1 or
    without a slot keeps its state."""
    depth = conv_state.shape[2]
    accepted, slots = accepted.long(), slots.long()
    grown = prefix_lens + (accepted + 1).to(prefix_lens.dtype)
    conv_state, late_state = conv_state.clone(), late_state.clone()
    writes = ((accepted >= 0) & (slots >= 0)).nonzero()[:, 0]
    last = cu_rows.long()[writes] + accepted[writes]
    # The rows of the new state, oldest first; negative ones are entries of the old state.
    steps = torch.arange(-depth + 1, 1, device=last.device)
    local = accepted[writes, None] + steps
    old = conv_state[:, slots[writes]].where((prefix_lens[writes] > 0)[:, None, None], 0)
    new = torch.where(
        local[..., None] >= 0,
        qk[:, (last[:, None] + steps).clamp(min=0)].to(old.dtype),
        old[
            :,
            torch.arange(len(writes), device=last.device)[:, None],
            (depth + local).clamp(0, depth - 1),
        ],
    )
    conv_state[:, slots[writes]] = new
    late_state[:, slots[writes]] = v_late[:, last].to(late_state.dtype)
    return grown, conv_state, late_state
