"""Every batch, context and P of a grid."""

from collections.abc import Sequence
from dataclasses import replace

from .devices import Ceilings
from .memory import fits
from .output import progress
from .plan import Accepting, Steady, best, candidates, drafting, plan
from .rows import beside
from .workload import Workload


def run(
    work: Workload,
    acceptance: Accepting,
    rates: Ceilings,
    batches: Sequence[float],
    contexts: Sequence[float],
    max_proposals: int,
    launch_us: float = 0.0,
    calibrated: Ceilings | None = None,
) -> list[dict]:
    """Flat rows; `best` marks the P with most tokens per second of its batch and context. Progress
    goes to stderr. Calibrated times stand beside the ideal ones where there are any."""
    for name, values in (("batches", batches), ("contexts", contexts)):
        if not values or any(v != int(v) for v in values):
            raise ValueError(f"{name}: expected integers separated by commas, got {list(values)}")
    if not 0 <= max_proposals <= work.verify_rows:
        raise ValueError(
            f"max_proposals: expected 0 .. {work.verify_rows} (one for each branch), "
            f"got {max_proposals}"
        )
    grid = [replace(work, batch=int(b), context_tokens=int(n)) for b in batches for n in contexts]
    rows = []
    choices = []
    with progress(max_proposals + 1 + len(grid)) as begin:
        for count in range(max_proposals + 1):
            begin(f"branches, P = {count}")
            choices += candidates(acceptance, [count])
        for w in grid:
            begin(f"batch {w.batch}, context {w.context_tokens}")
            cell = _cell(w, choices, rates, launch_us)
            if calibrated:
                beside(cell, plan(w, choices, calibrated, launch_us))
            rows += cell
    return rows


def _cell(
    w: Workload, choices: list[tuple[Steady, bool]], rates: Ceilings, launch_us: float
) -> list[dict]:
    options = plan(w, choices, rates, launch_us)
    chosen = best(options)
    most = max(len(o.steady.branches) for o in options)
    autoregressive = options[0].tokens_per_s
    return [
        {
            "device": rates.device,
            "basis": rates.basis,
            "batch": w.batch,
            "context_tokens": w.context_tokens,
            "proposals": len(o.steady.branches),
            "branches": list(o.steady.branches),
            "tokens_per_pass": o.steady.tokens_per_pass,
            "pass_ms": o.pass_seconds * 1e3,
            "tokens_per_s": o.tokens_per_s,
            "speed_up": o.tokens_per_s / autoregressive,
            "best": o is chosen,
            "capped": o is chosen and 0 < len(o.steady.branches) == most < w.verify_rows,
            "fits": fits(drafting(w, o.steady), rates),
        }
        for o in options
    ]
