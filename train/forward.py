"""A differentiable forward pass over sequences of verify rows and proposals, all under one
structured mask."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .. import reference
from ..data import BYTE_MASK
from ..layout import BlockLayout, own_mask
from ..models.config import ZayaConfig
from ..models.weights import assemble
from ..models.zaya import ZayaModel
from ..types import Rows


class Sequences(NamedTuple):
    """tokens [batch*rows]; clean [batch,V+1]: the verify rows' tokens and the one after them;
    branch [P], which all sequences share."""

    tokens: torch.Tensor
    rows: Rows
    clean: torch.Tensor
    branch: torch.Tensor


class TrainingOps(SimpleNamespace):
    """The reference ops in differentiable form, which write no buffers. Attention uses one dense
    mask, since all sequences have the same branches. `loads` gathers the experts that each layer
    chose."""

    def __init__(self, rows: Rows):
        batch = len(rows.prefix_lens)
        table = rows.table(batch * rows.max_rows)
        first = type(table)(*(field[: rows.max_rows] for field in table))
        mask = own_mask(first, 0, rows.bidirectional)
        loads: list[torch.Tensor] = []

        def attention(q, k, v, k_cache, v_cache, block_table, rows, scale, window):
            q, k, v = (x.unflatten(0, (batch, -1)).transpose(1, 2) for x in (q, k, v))
            out = F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True)
            return out.transpose(1, 2).flatten(0, 1)

        def cca(*args, **kwargs):
            return reference.cca_qkv(*args[:13], **kwargs)

        def router(*args, **kwargs):
            out = reference.zaya_router(*args, **kwargs)
            loads.append(out[1])
            return out

        super().__init__(
            block_attention=_pure(attention),
            cca_qkv=_pure(cca),
            zaya_router=_pure(router),
            fused_moe=_pure(reference.fused_moe),
            linear=_pure(reference.linear),
            residual_norm=_pure(reference.residual_norm),
            loads=loads,
        )


def _pure(function: Callable) -> Callable:
    """The function without the options that only say where results go."""

    def run(*args, out=None, workspace=None, with_stream=True, **kwargs):
        return function(*args, **kwargs)

    return run


def draw(
    data: torch.Tensor, layout: BlockLayout, batch: int, generator: torch.Generator
) -> Sequences:
    """`batch` pieces of the text, with proposals at branches drawn without repetition."""
    starts = torch.randint(len(data) - layout.V - 1, (batch,), generator=generator)
    clean = data[starts[:, None] + torch.arange(layout.V + 1)].long()
    order = torch.randperm(layout.V - layout.M + 1, generator=generator)
    return sequences(clean, layout, order[: layout.P].sort().values + 1)


def sequences(clean: torch.Tensor, layout: BlockLayout, branch: torch.Tensor) -> Sequences:
    size = len(clean)
    masks = torch.full((size, layout.P * layout.M), BYTE_MASK)
    i32 = dict(dtype=torch.int32)
    rows = layout.pack(
        torch.zeros(size, **i32),
        torch.full((size,), layout.K, **i32),
        branch.int().expand(size, -1),
        0,
    )
    return Sequences(torch.cat([clean[:, :-1], masks], 1).flatten(), rows, clean, branch)


def logits_of(
    tensors: dict[str, torch.Tensor], config: ZayaConfig, layout: BlockLayout, drawn: Sequences
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """float32 logits of the verify rows [batch,V,vocab] and of the mask rows [batch,P,M,vocab], and
    the experts that each layer chose."""
    ops = TrainingOps(drawn.rows)
    model = ZayaModel(config, assemble(config, tensors), ops)
    logits = model.logits(model.forward(drawn.tokens, drawn.rows)).float()
    logits = logits[:, : config.num_valid_vocab].unflatten(0, (len(drawn.clean), layout.rows))
    verify, masks = logits.split([layout.V, layout.P * layout.M], 1)
    return verify, masks.unflatten(1, (layout.P, layout.M)), ops.loads
