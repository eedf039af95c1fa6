"""residual_norm of ZAYA1-8B: hidden 2048, scales and biases of both operands. `few`: only every
fourth row is read."""

from typing import Any

import torch
import torch.nn.functional as F

from .. import ops
from ..roofline import costs
from ..roofline.costs import Cost
from ..testing import assert_close
from .case import Implementation, Normal, Prepared, backends, compiled

HIDDEN, EPS = 2048, 1e-5


def cases(quick: bool) -> list[dict[str, Any]]:
    if quick:
        return [dict(T=64, few=True)]
    return [*(dict(T=t, few=False) for t in (1, 16, 64, 272, 1024)), dict(T=1024, few=True)]


def _rows(parameters: dict[str, Any]) -> int:
    return parameters["T"] // (4 if parameters["few"] else 1)


def cost(parameters: dict[str, Any], itemsize: int) -> Cost:
    return costs.residual_norm(_rows(parameters), HIDDEN, itemsize)


def build(parameters: dict[str, Any], dtype: torch.dtype, device: str) -> Prepared:
    normal = Normal(dtype, device)
    T, rows = parameters["T"], _rows(parameters)
    x, weight = normal(T, HIDDEN), normal(HIDDEN)
    scales = [normal(HIDDEN, scale=0.1) for _ in range(4)]
    residual = normal(T, HIDDEN).float()
    index = None
    if parameters["few"]:
        index = torch.arange(0, T, 4, dtype=torch.int32, device=device)
    names = ("scale", "bias", "residual_scale", "residual_bias")
    given = dict(zip(names, scales)) | dict(residual=residual, index=index)
    out = torch.empty(rows, HIDDEN, dtype=dtype, device=device)
    stream = torch.empty(rows, HIDDEN, device=device)

    def ours(backend: str) -> tuple[torch.Tensor, torch.Tensor]:
        ops.residual_norm(x, weight, EPS, **given, out=(out, stream), backend=backend)
        return out, stream

    def torch_ops(x, residual):
        if index is not None:
            x, residual = x[index], residual[index]
        scale, bias, residual_scale, residual_bias = scales
        summed = (x + bias) * scale + (residual + residual_bias) * residual_scale
        return F.rms_norm(summed.to(dtype), (HIDDEN,), weight, EPS), summed

    expected = torch_ops(x.float(), residual)

    def check(result: tuple[torch.Tensor, torch.Tensor], slack: float) -> None:
        for name, mine, theirs in zip(("out", "stream"), result, expected):
            assert_close(mine.to(dtype), theirs.to(dtype), dtype, name, 4 * slack)

    peers = [
        Implementation("torch", lambda: lambda: torch_ops(x, residual)),
        compiled("torch compiled", torch_ops, x, residual),
    ]
    return Prepared(backends("residual_norm", ours, out) + peers, check)
