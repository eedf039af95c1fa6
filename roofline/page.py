"""One self-contained HTML page with sliders. Its numbers are computed here, on a grid that the
sliders step through, so that they are the commands' own."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from ..models.config import ZayaConfig
from . import acceptance
from .blocks import READINGS, blocks
from .devices import BASES, BASIS_TEXT, Ceilings, ceilings
from .figures import Device
from .plan import Steady, candidates, plan
from .workload import Workload

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
CONTEXTS = tuple(1024 * 2**i for i in range(8))
MEANS = (2.0, 3.0, 4.6, 6.0, 7.7, 10.0)
MAX_PROPOSALS = 6

# The best branches of each P, for one mean
Choice = list[tuple[Steady, bool]]


def contexts_of(model: ZayaConfig) -> list[int]:
    return [n for n in CONTEXTS if n <= model.max_position_embeddings]


def data(model_name: str, work: Workload, devices: Iterable[Device], launch_us: float) -> dict:
    """seconds[device][basis][mean][batch][context][P], all by index; plans[mean][P]: branches and
    tokens a pass."""
    drafts = work.verify_rows - 1
    choices = [_choice(mean, drafts, work.mask_rows) for mean in MEANS]
    seconds = {}
    used = {}
    free = {}
    for device in devices:
        free[device.name] = _free(device, work.model)
        for basis in BASES:
            try:
                rates = ceilings(device, work.dtype, basis)
            except ValueError:
                continue
            figures = {name: asdict(figure) for name, figure in rates.used.items()}
            used.setdefault(device.name, {})[basis] = figures
            times = [_seconds(work, choice, rates, launch_us) for choice in choices]
            seconds.setdefault(device.name, {})[basis] = times
    plans = [
        [{"branches": s.branches, "tokens": s.tokens_per_pass} for s, _ in choice]
        for choice in choices
    ]
    return {
        "model": model_name,
        "drafts": drafts,
        "mask_rows": work.mask_rows,
        "dtype": work.dtype,
        "launch_us": launch_us,
        "batches": BATCHES,
        "contexts": contexts_of(work.model),
        "means": MEANS,
        "bases": BASIS_TEXT,
        "seconds": seconds,
        "plans": plans,
        "used": used,
        "blocks": free,
    }


def _choice(mean: float, drafts: int, mask_rows: int) -> Choice:
    alpha = acceptance.solve_alpha(mean, drafts)
    return candidates(acceptance.iid(alpha, drafts, mask_rows), range(MAX_PROPOSALS + 1))


def _free(device: Device, model: ZayaConfig) -> list[dict]:
    """Free blocks by reading."""
    found = [blocks(device, model, reading) for reading in READINGS]
    return [
        {"reading": b.reading.name, "t": b.t, "unconfirmed": bool(b.unconfirmed)} for b in found
    ]


def _seconds(
    work: Workload, choice: Choice, rates: Ceilings, launch_us: float
) -> list[list[Sequence[float]]]:
    """[batch][context][P]"""

    def of_each_proposals(batch: int, context: int) -> list[float]:
        options = plan(replace(work, batch=batch, context_tokens=context), choice, rates, launch_us)
        return [float(f"{o.pass_seconds:.9g}") for o in options]

    contexts = contexts_of(work.model)
    return [[of_each_proposals(batch, n) for n in contexts] for batch in BATCHES]


def write(path: Path, content: dict) -> Path:
    template = Path(__file__).with_name("page.html").read_text()
    # "</script>" within the data would end the script
    text = json.dumps(content, separators=(",", ":")).replace("</", "<\\/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(template.replace("__DATA__", text))
    return path
