"""`sglang.srt.models.zaya.CCA.forward` by one launch of `cca_qkv`, in place of a loop over the
requests of a prefill."""

import dataclasses
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from ... import ops
from ...types import Rows

if TYPE_CHECKING:
    from .inputs import Projected


def around_forward(
    original: Callable[..., Any], self: Any, hidden_states: torch.Tensor, forward_batch: Any
) -> Any:
    """SGLang's own where another attention was chosen, for an idle batch, or on several GPUs: heads
    are split there, and the delayed values are not."""
    from sglang.srt.model_executor.forward_context import get_attn_backend

    from .attention import Backend, batch_rows
    from .inputs import VerifyInput

    attention = get_attn_backend()
    ours = isinstance(getattr(attention, "full_attn_backend", attention), Backend)
    if not ours or self.tp_size != 1 or len(hidden_states) == 0:
        return original(self, hidden_states, forward_batch)
    state = attention.conv_state_metadata(self.layer_id, forward_batch)
    rows, info = batch_rows(forward_batch), forward_batch.spec_info
    *qkv, inputs = project(self, hidden_states, rows, state)
    if isinstance(info, VerifyInput):
        info.projected.append(inputs.of(info.verify_rows))
    else:
        commit([inputs], rows.draft_len, rows)
    return tuple(qkv)


def project(self: Any, hidden_states: torch.Tensor, rows: Rows, state: Any) -> tuple[Any, ...]:
    """q [T,Hq,Dh], k and v [T,Hk,Dh] before RoPE, and what `commit` takes."""
    from .inputs import Projected

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
    return q, k, v, Projected(qk, v_late, hidden_states, state)


def commit(layers: "list[Projected]", accepted: torch.Tensor, rows: Rows) -> None:
    """The state after verify row accepted[b] of each request (-1: it stays). SGLang keeps the last
    columns of the convolution [slots,C,taps-1] and the last hidden state."""
    slots = layers[0].state.cache_indices.long()
    pools = [layer.state.layer_cache.conv[:2] for layer in layers]
    conv = torch.stack([pool[slots] for pool, _ in pools]).transpose(2, 3)
    conv = conv.to(layers[0].qk.dtype).contiguous()
    qk, v_late = (torch.stack([getattr(t, name) for t in layers]) for name in ("qk", "v_late"))
    own = torch.arange(len(slots), dtype=torch.int32, device=slots.device)
    grown = dataclasses.replace(rows, prefix_lens=rows.prefix_lens.clone())  # SGLang's own stay
    late = v_late.new_zeros(len(layers), len(slots), v_late.shape[2])  # of no use to SGLang
    ops.commit(qk, v_late, accepted, grown, conv, late, own)
    last = (rows.cu_rows[:-1] + accepted.clamp(min=0)).long()
    kept = (accepted >= 0)[:, None, None]
    for (conv_pool, hidden_pool), new, layer in zip(pools, conv, layers):
        conv_pool[slots] = new.transpose(1, 2).to(conv_pool.dtype)
        hidden = layer.hidden[last].unsqueeze(-1).to(hidden_pool.dtype)
        hidden_pool[slots] = torch.where(kept, hidden, hidden_pool[slots])


@lru_cache(maxsize=4)
def _no_rotation(positions: int, device: torch.device) -> torch.Tensor:
    """SGLang rotates afterwards."""
    return torch.tensor([1.0, 0.0], device=device).repeat(positions, 1)
