"""zaya_router of ZAYA1-8B: hidden 2048, router 256, 16 experts and skip. Only rows with a clear
choice are routed, so that an implementation with more rounding makes the same choice."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from .. import ops
from ..roofline import costs
from ..roofline.costs import Cost
from ..testing import assert_close
from .case import Implementation, Normal, Prepared, backends

EXPERTS, HIDDEN, INNER, EPS = 16, 2048, 256, 1e-5
Output = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # weights, experts, state


def cases(quick: bool) -> list[dict[str, Any]]:
    return [dict(T=64)] if quick else [dict(T=t) for t in (1, 16, 64, 272, 1024)]


def cost(parameters: dict[str, Any], itemsize: int) -> Cost:
    return costs.zaya_router(parameters["T"], HIDDEN, INNER, EXPERTS, itemsize)


@dataclass(frozen=True)
class Inputs:
    hidden: torch.Tensor
    prev_state: torch.Tensor
    weights: dict[str, torch.Tensor]  # by zaya_router's names


def weights_of(normal: Normal) -> dict[str, torch.Tensor]:
    return dict(
        down_weight=normal(INNER, HIDDEN, scale=HIDDEN**-0.5),
        down_bias=normal(INNER, scale=0.1),
        eda_scale=1 + normal(INNER, scale=0.1),
        norm_weight=1 + normal(INNER, scale=0.1),
        fc1_weight=normal(INNER, INNER, scale=INNER**-0.5),
        fc1_bias=normal(INNER, scale=0.1),
        fc2_weight=normal(INNER, INNER, scale=INNER**-0.5),
        fc2_bias=normal(INNER, scale=0.1),
        out_weight=normal(EXPERTS + 1, INNER, scale=2 * INNER**-0.5),
        balancing_bias=normal(EXPERTS + 1, scale=0.02).float(),
    )


def inputs(parameters: dict[str, Any], dtype: torch.dtype, device: str) -> Inputs:
    """The rows with the clearest choice, out of four times as many."""
    T = parameters["T"]
    normal = Normal(dtype, device)
    weights = weights_of(normal)
    every = Inputs(normal(4 * T, HIDDEN), normal(4 * T, INNER), weights)
    best = biased(every)[0].topk(2, -1).values
    clear = (best[:, 0] - best[:, 1]).topk(T).indices
    return Inputs(every.hidden[clear], every.prev_state[clear], weights)


def biased(data: Inputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """In fp32: the probabilities with biases, those without, and the state."""
    w = {name: t.float() for name, t in data.weights.items()}
    state = F.linear(data.hidden.float(), w["down_weight"], w["down_bias"])
    state = state + data.prev_state.float() * w["eda_scale"]
    x = F.rms_norm(state, (INNER,), w["norm_weight"], EPS)
    x = F.gelu(F.linear(x, w["fc1_weight"], w["fc1_bias"]))
    x = F.gelu(F.linear(x, w["fc2_weight"], w["fc2_bias"]))
    p = F.linear(x, w["out_weight"]).softmax(-1)
    return p + w["balancing_bias"], p, state


def expected_of(data: Inputs) -> Output:
    scores, p, state = biased(data)
    choice = scores.argmax(-1)
    weight = p.gather(1, choice[:, None])[:, 0]
    skipped = choice == EXPERTS
    return weight.masked_fill(skipped, 0), choice.masked_fill(skipped, -1), state


def transformers_router(data: Inputs) -> Callable:
    from transformers import ZayaConfig
    from transformers.models.zaya.modeling_zaya import ZayaRouter

    config = ZayaConfig(
        num_hidden_layers=2,
        num_experts=EXPERTS,
        hidden_size=HIDDEN,
        router_hidden_size=INNER,
        rms_norm_eps=EPS,
    )
    module = ZayaRouter(config, layer_idx=1).to(data.hidden).eval()
    w = data.weights
    loaded = {
        "down_proj.weight": w["down_weight"],
        "down_proj.bias": w["down_bias"],
        "router_states_scale": w["eda_scale"],
        "router_mlp.norm.weight": w["norm_weight"],
        "router_mlp.fc1.weight": w["fc1_weight"],
        "router_mlp.fc1.bias": w["fc1_bias"],
        "router_mlp.fc2.weight": w["fc2_weight"],
        "router_mlp.fc2.bias": w["fc2_bias"],
        "router_mlp.out_proj.weight": w["out_weight"],
        "balancing_biases": w["balancing_bias"],
    }
    module.balancing_biases = module.balancing_biases.float()
    module.load_state_dict(loaded)
    return module


def transformers(data: Inputs, compiled: bool) -> Callable[[], Output]:
    module = transformers_router(data)
    if compiled:
        torch._dynamo.reset()  # which otherwise gives up after a few sizes
        module = torch.compile(module, dynamic=False)
    hidden, prev_state = data.hidden[None], data.prev_state[None]

    def run() -> Output:
        with torch.no_grad():
            _, weights, experts, state = module(hidden, prev_state)
            # transformers represents skip as expert 0 with weight 0
            return weights[:, 0], experts[:, 0].masked_fill(weights[:, 0] == 0, -1), state[0]

    run()
    return run


def build(parameters: dict[str, Any], dtype: torch.dtype, device: str) -> Prepared:
    data = inputs(parameters, dtype, device)
    expected = expected_of(data)

    def ours(backend: str) -> Output:
        weights, experts, _, state = ops.zaya_router(
            data.hidden, data.prev_state, **data.weights, eps=EPS, backend=backend
        )
        return weights[:, 0], experts[:, 0], state

    def check(result: Output, slack: float) -> None:
        weights, experts, state = result
        assert torch.equal(experts.long(), expected[1]), "experts: other choices"
        assert_close(weights, expected[0], dtype, "weights", slack)
        assert_close(state, expected[2], dtype, "state", slack)

    peers = [
        Implementation("transformers", lambda: transformers(data, compiled=False)),
        Implementation("transformers compiled", lambda: transformers(data, compiled=True)),
    ]
    return Prepared(backends("zaya_router", ours) + peers, check)
