"""`sglang.srt.models.zaya.CCA.forward` by one launch of `cca_qkv`, in place of a loop over the
requests of a prefill."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from ... import ops


def around_forward(
    original: Callable[..., Any], self: Any, hidden_states: torch.Tensor, forward_batch: Any
) -> Any:
    """SGLang's own where another attention was chosen, for an idle batch, or on several GPUs: heads
    are split there, and the delayed values are not."""
    from sglang.srt.model_executor.forward_context import get_attn_backend

    from .attention import Backend, batch_rows

    attention = get_attn_backend()
    ours = isinstance(getattr(attention, "full_attn_backend", attention), Backend)
    if not ours or self.tp_size != 1 or len(hidden_states) == 0:
        return original(self, hidden_states, forward_batch)
    state = attention.conv_state_metadata(self.layer_id, forward_batch)
    return project(self, hidden_states, batch_rows(forward_batch), state)


def project(
    self: Any, hidden_states: torch.Tensor, rows: Any, state: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q [T,Hq,Dh], k and v [T,Hk,Dh] before RoPE, and the requests' state after these tokens:
    SGLang keeps the last columns of the convolution [slots,C,taps-1] and the last hidden state."""
    conv_pool, hidden_pool = state.layer_cache.conv[:2]
    slots = state.cache_indices.long()
    qk = torch.cat([self.linear_q(hidden_states)[0], self.linear_k(hidden_states)[0]], -1)
    v_now, v_late = self.val_proj1(hidden_states)[0], self.val_proj2(hidden_states)[0]
    conv = conv_pool[slots].transpose(1, 2).to(qk.dtype).contiguous()
    late = self.val_proj2(hidden_pool[slots].squeeze(-1).to(hidden_states.dtype))[0]
    temp = self.temp.float()
    temp = temp.clamp(1e-7, 2.0).exp() if self.clamp_temp else temp
    own = torch.arange(len(slots), dtype=torch.int32, device=slots.device)
    q, k, v = ops.cca_qkv(
        qk,
        v_now,
        v_late,
        self.conv_qk[0].weight,
        self.conv_qk[0].bias,
        self.conv_qk[1].weight,
        self.conv_qk[1].bias,
        temp.to(qk.dtype),
        _no_rotation(rows.max_prefix + rows.max_rows, qk.device),
        rows,
        conv,
        late,
        own,
        late_start=getattr(self.val_proj2, "bias", None),
        norm_eps=1e-12,
    )
    fresh = (rows.prefix_lens == 0)[:, None, None]
    conv, late = conv.masked_fill(fresh, 0)[None], late[None]
    ops.commit(qk[None], v_late[None], rows.draft_len, rows, conv, late, own)
    conv_pool[slots] = conv[0].transpose(1, 2).to(conv_pool.dtype)
    last = rows.cu_rows[1:].long() - 1
    hidden_pool[slots] = hidden_states[last].unsqueeze(-1).to(hidden_pool.dtype)
    return q, k, v


@lru_cache(maxsize=4)
def _no_rotation(positions: int, device: torch.device) -> torch.Tensor:
    """SGLang rotates afterwards."""
    return torch.tensor([1.0, 0.0], device=device).repeat(positions, 1)
