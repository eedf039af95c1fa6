"""linear of ZAYA1-8B: the projection into the attention, the one out of it, the LM head."""

from typing import Any

import torch
import torch.nn.functional as F

from .. import ops
from ..roofline import costs
from ..roofline.costs import Cost
from ..testing import assert_close
from .case import Implementation, Normal, Prepared, backends, compiled

SIZES = {"qkv": (2048, 1536), "output": (1024, 2048), "head": (2048, 262272)}  # inputs, outputs


def cases(quick: bool) -> list[dict[str, Any]]:
    if quick:
        return [dict(of="output", T=16)]
    return [dict(of=of, T=t) for of in SIZES for t in ((1, 16, 64, 272) if of != "head" else (16,))]


def cost(parameters: dict[str, Any], itemsize: int) -> Cost:
    return costs.linear(parameters["T"], *SIZES[parameters["of"]], itemsize)


def build(parameters: dict[str, Any], dtype: torch.dtype, device: str) -> Prepared:
    inputs, outputs = SIZES[parameters["of"]]
    normal = Normal(dtype, device)
    x = normal(parameters["T"], inputs)
    weight = normal(outputs, inputs, scale=inputs**-0.5)
    out = torch.empty(len(x), outputs, dtype=dtype, device=device)
    expected = F.linear(x.float(), weight.float())

    def ours(backend: str) -> torch.Tensor:
        return ops.linear(x, weight, out=out, backend=backend)

    def check(result: torch.Tensor, slack: float) -> None:
        assert_close(result, expected, dtype, "out", slack)

    peers = [
        Implementation("torch", lambda: lambda: F.linear(x, weight)),
        compiled("torch compiled", F.linear, x, weight),
    ]
    return Prepared(backends("linear", ours, out) + peers, check)
