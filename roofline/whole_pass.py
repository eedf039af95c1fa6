"""Whole passes of `bench step` against what a calibration of the ops predicts of them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..models.config import ZayaConfig
from .calibration import Calibration
from .devices import Ceilings, ceilings, measured_cpu
from .step import pass_seconds
from .workload import Workload, spread

# The rows of a block, and the names of dtypes, that `bench step` uses
BLOCK = 16
SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


@dataclass(frozen=True)
class Pass:
    """A measured pass. held_out: its host cost was not used. host_ms: what its ops leave."""

    name: str
    work: Workload
    measured_ms: float
    host_ms: float
    ideal_ms: float = 0.0
    predicted_ms: float = 0.0
    held_out: bool = True

    @property
    def errors(self) -> dict[str, float]:
        return {
            "error": self.predicted_ms / self.measured_ms - 1,
            "ideal_error": self.ideal_ms / self.measured_ms - 1,
        }

    def to_row(self) -> dict:
        return {
            "batch": self.work.batch,
            "context_tokens": self.work.context_tokens,
            "measured_ms": self.measured_ms,
            "predicted_ms": self.predicted_ms,
            "ideal_ms": self.ideal_ms,
            "host_ms": self.host_ms,
            "held_out": self.held_out,
            **self.errors,
        }


def read(path: Path) -> list[Pass]:
    """The passes of a file that `bench step --json` wrote."""
    where = f"calibrate: --step: {path}"
    try:
        data = json.loads(path.read_text())
        return [_pass(data, each) for each in data["passes"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{where}: expected a file of `bench step --json`, got {error!r}"
        ) from error


def _pass(data: dict, each: dict) -> Pass:
    proposals = each["proposals"]
    plain = proposals is None
    model = ZayaConfig(
        num_hidden_layers=data["layers"],
        vocab_size=data["vocab"],
        mask_token_id=data["vocab"] - 1,
        eos_token_id=0,
    )
    rows = 1 if plain else BLOCK
    branches = () if plain else spread(proposals, rows)
    dtype = SHORT[data["dtype"]]
    # random drafts are rejected at once
    work = Workload(
        model, each["batch"], each["context"], rows, rows, branches, dtype, dtype, accepted=0
    )
    if each.get("touched"):
        work = replace(work, touched=((work.pass_rows, each["touched"]),))
    seconds = sorted(each["seconds"])
    name = "1 row" if plain else f"P = {proposals}"
    host_ms = 1e3 * each["by_op"].get("the rest", 0.0)
    return Pass(name, work, 1e3 * seconds[len(seconds) // 2], host_ms)


# What `check` measures: a stack, a batch, so many passes, and the proposals of each layout
MEASURED = dict(layers=2, vocab=65536, batch=1, context=1024)
PASSES = 7
PROPOSALS = (None, 1, 3)


def measure(dtype: str, on_pass: Callable[[str], None] = lambda label: None) -> list[Pass]:
    """Whole passes of the decoder on this CPU, as `bench step` measures them."""
    from ..bench import step
    from ..bench.case import DTYPES
    from ..layout import BlockLayout

    model = step.random_model(MEASURED["layers"], MEASURED["vocab"], DTYPES[dtype])
    context = MEASURED["context"]
    found = []
    for proposals in PROPOSALS:
        plain = proposals is None
        layout = BlockLayout.autoregressive() if plain else BlockLayout.tidar(BLOCK, proposals)
        on_pass("pass, 1 row" if plain else f"pass, P = {proposals}")
        room = (PASSES + 2) * layout.V
        batch = step.prepared(model, layout, MEASURED["batch"], context, room)
        seconds, by_op = step.measure(batch, context, PASSES)
        # the fastest, as of the shapes that it is predicted from
        each = MEASURED | dict(proposals=proposals, seconds=[min(seconds)], by_op=by_op)
        each["touched"] = step.touched_experts(batch)
        found.append(_pass(MEASURED | dict(dtype=dtype), each))
    return found


def routed(passes: list[Pass], touched: Sequence[tuple[float, float]]) -> list[Pass]:
    """The same passes with the experts that they were seen to touch. Random weights route most
    rows to a few, or to none."""
    return [replace(p, work=replace(p.work, touched=tuple(touched))) for p in passes]


def predict(found: Calibration, passes: list[Pass]) -> tuple[Calibration, list[Pass]]:
    """The calibration with the host's cost, which is that of the first pass, and every pass with
    its times."""
    if not passes:
        raise ValueError("calibrate: --step: expected at least one pass, got none")
    found = replace(found, host_us=1e3 * passes[0].host_ms)
    device = measured_cpu(found.limits, found.source)
    predicted = []
    for i, each in enumerate(passes):
        rates: Ceilings = ceilings(device, each.work.dtype, "achieved")
        calibrated = replace(rates, calibration=found)
        predicted.append(
            replace(
                each,
                ideal_ms=1e3 * pass_seconds(each.work, rates),
                predicted_ms=1e3 * pass_seconds(each.work, calibrated),
                held_out=i > 0,
            )
        )
    return found, predicted
