"""What a deployment keeps in a device's memory, and how many requests fit."""

from dataclasses import dataclass, replace
from math import floor, inf

from ..models.config import ZayaConfig
from .devices import Ceilings
from .figures import ITEMSIZE_BYTES
from .models import weight_parts
from .workload import Workload

# Share of the memory that is left to the framework, graphs and fragments: assumed
RESERVE = 0.04


@dataclass(frozen=True)
class Memory:
    """Bytes of each part, on one of the GPUs that share a pass.

    weights        of all experts, without norms
    cache          K and V; a layer with a window keeps no more tokens than that
    states         of the convolutions and the delayed values, between passes
    activations    the buffers of one layer, which all layers share, and what `commit` reads of each
    logits         of the verify rows, and of the drafts, which are kept until they are verified
    """

    weights: float
    cache: float
    states: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        return self.weights + self.of_requests

    @property
    def of_requests(self) -> float:
        """Bytes that grow with the batch."""
        return self.cache + self.states + self.activations + self.logits


def kv_bytes(model: ZayaConfig, tokens: int, itemsize: float) -> float:
    """Of one request with so many cached tokens. A cache whose pages all layers share, such as
    blockdraft's own, keeps every token of a windowed layer too: see `kv_bytes_unwindowed`."""
    token = 2 * model.num_key_value_heads * model.head_dim * itemsize
    return token * sum(
        min(tokens, model.window(layer) or tokens) for layer in range(model.num_hidden_layers)
    )


def kv_bytes_unwindowed(model: ZayaConfig, tokens: int, itemsize: float) -> float:
    """As `kv_bytes`, of a cache that never frees what a window has passed."""
    return kv_bytes(replace(model, sliding_window=None, layer_types=()), tokens, itemsize)


def of(w: Workload) -> Memory:
    m = w.model
    size = ITEMSIZE_BYTES[w.dtype]
    rows = w.pass_rows
    verified = w.batch * w.verify_rows
    tokens = w.context_tokens + w.verify_rows
    values = m.num_key_value_heads * m.head_dim
    of_row = (
        (4 + 3 * size) * m.hidden_size  # fp32 residual; norm, attention's and experts' outputs
        + size * (m.conv_channels + 2 * m.late_channels)  # projected
        + size * (m.conv_channels + values)  # q, k and v
        + size * m.num_attention_heads * m.head_dim
        + size * m.moe_intermediate_size
    )
    committed = size * m.num_hidden_layers * (m.conv_channels + m.late_channels)
    state = size * m.num_hidden_layers * (m.conv_depth * m.conv_channels + m.late_channels)
    drafts = w.batch * (w.verify_rows - 1) if w.branches else 0
    once = w.branches and w.lm_head == "once"
    headed = w.batch * w.rows if once else verified
    return Memory(
        weights=_weights(w),
        cache=w.batch * kv_bytes(m, tokens, ITEMSIZE_BYTES[w.kv_dtype]) * kv_share(w),
        states=w.batch * state / w.tp,
        activations=rows * of_row + verified * committed / w.tp,
        logits=(headed + drafts) * m.vocab_size * size,
    )


def _weights(w: Workload) -> float:
    """Of one GPU. The router and the convolutions are on each, in the dtype of activations."""
    head, projections, experts, rest = weight_parts(w.model)
    shared = head * w.head_bytes + (projections + experts) * w.weight_bytes
    return shared / w.tp + rest * ITEMSIZE_BYTES[w.dtype]


def kv_share(w: Workload) -> float:
    """Of the KV heads that a GPU keeps: whole ones, so that many GPUs keep the same."""
    heads = w.model.num_key_value_heads
    return max(1, heads // w.tp) / heads


def room(memory_gb: float | None, reserve: float = RESERVE) -> float:
    """Bytes that a deployment may take; inf where the size is not known."""
    if not 0 <= reserve < 1:
        raise ValueError(f"reserve: expected a share in 0 .. 1, got {reserve!r}")
    return inf if memory_gb is None else (1 - reserve) * memory_gb * 1e9


def fits(w: Workload, rates: Ceilings, reserve: float = RESERVE) -> bool:
    """Whether all of it fits beside the reserve; true where the device's memory is not known."""
    return of(w).total <= room(rates.memory_gb, reserve)


def max_batch(w: Workload, rates: Ceilings, reserve: float = RESERVE) -> int | None:
    """The most requests like those of `w` that fit, 0 where not even the weights do; None where the
    device's memory is not known."""
    left = room(rates.memory_gb, reserve)
    if left == inf:
        return None
    one = of(replace(w, batch=1))
    return max(0, floor((left - one.weights) / one.of_requests))
