"""One self-contained HTML page with sliders. Its numbers are computed here, on a grid that the
sliders step through, so that they are the commands' own."""

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

from . import acceptance
from .blocks import READINGS, blocks
from .devices import BASES, BASIS_TEXT, Device, ceilings
from .plan import candidates, plan
from .step import Workload

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
CONTEXTS = tuple(1024 * 2**i for i in range(8))
MEANS = (2.0, 3.0, 4.6, 6.0, 7.7, 10.0)
MAX_PROPOSALS = 6


def data(
    model_name: str,
    work: Workload,
    devices: Iterable[Device],
    launch_us: float,
    on_cell=lambda: None,
) -> dict:
    """seconds[device][basis][mean][batch][context][P], all by index; plans[mean][P]: branches and
    tokens a pass."""
    choices = [
        candidates(
            acceptance.iid(
                acceptance.solve_alpha(mean, work.verify_rows - 1),
                work.verify_rows - 1,
                work.mask_rows,
            ),
            range(MAX_PROPOSALS + 1),
        )
        for mean in MEANS
    ]
    contexts = [n for n in CONTEXTS if n <= work.model.max_position_embeddings]
    seconds, used, free = {}, {}, {}
    for device in devices:
        free[device.name] = [
            {"reading": b.reading.name, "t": b.t, "unconfirmed": bool(b.unconfirmed)}
            for b in (blocks(device, work.model, reading) for reading in READINGS)
        ]
        for basis in BASES:
            try:
                rates = ceilings(device, work.dtype, basis)
            except ValueError:
                continue
            used.setdefault(device.name, {})[basis] = {
                name: asdict(figure) for name, figure in rates.used.items()
            }
            seconds.setdefault(device.name, {})[basis] = [
                [
                    [
                        [
                            float(f"{o.pass_seconds:.9g}")
                            for o in plan(
                                replace(work, batch=b, context_tokens=n), choice, rates, launch_us
                            )
                        ]
                        for n in contexts
                    ]
                    for b in BATCHES
                ]
                for choice in choices
            ]
            on_cell()
    plans = [
        [{"branches": s.branches, "tokens": s.tokens_per_pass} for s, _ in choice]
        for choice in choices
    ]
    return {
        "model": model_name,
        "drafts": work.verify_rows - 1,
        "mask_rows": work.mask_rows,
        "dtype": work.dtype,
        "launch_us": launch_us,
        "batches": BATCHES,
        "contexts": contexts,
        "means": MEANS,
        "bases": BASIS_TEXT,
        "seconds": seconds,
        "plans": plans,
        "used": used,
        "blocks": free,
    }


def write(path: Path, content: dict) -> Path:
    template = Path(__file__).with_name("page.html").read_text()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        template.replace(
            "__DATA__", json.dumps(content, separators=(",", ":")).replace("</", "<\\/")
        )
    )
    return path
