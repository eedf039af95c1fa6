"""One self-contained HTML page with sliders. Its numbers are computed here, on a grid that the
sliders step through, so that they are the commands' own."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from ..models.config import ZayaConfig
from . import acceptance, memory
from .blocks import READINGS, blocks
from .calibration import Calibration
from .devices import BASES, BASIS_TEXT, Ceilings, ceilings
from .figures import Device
from .pass_tables import calibrated_by
from .plan import Accepting, Steady, candidates, drafting, plan
from .workload import Workload

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
CONTEXTS = tuple(1024 * 2**i for i in range(8))
MEANS = (2.0, 3.0, 4.6, 6.0, 7.7, 10.0)
MAX_PROPOSALS = 6
# The place of an acceptance of one's own on the slider of means
GIVEN = "as given"

# The best branches of each P, for one mean
Choice = list[tuple[Steady, bool]]


def contexts_of(model: ZayaConfig) -> list[int]:
    return [n for n in CONTEXTS if n <= model.max_position_embeddings]


def data(
    model_name: str,
    work: Workload,
    devices: Iterable[Device],
    launch_us: float,
    accepting: Accepting | None = None,
    start: dict | None = None,
    calibration: Calibration | None = None,
) -> dict:
    """seconds[device][basis][mean][batch][context][P], all by index; calibrated: the same, empty
    without a calibration; plans[mean][P]: branches and tokens a pass; request_gb[context][P].

    accepting    an acceptance of one's own, which the slider of means ends with
    start        what the page opens on, by the names of its controls
    """
    devices = list(devices)
    start = start or {}
    drafts = work.verify_rows - 1
    means = [mean for mean in MEANS if mean <= drafts + 1]
    choices = [_choice(mean, drafts, work.mask_rows) for mean in means]
    most = min(MAX_PROPOSALS, work.verify_rows)
    if accepting is not None:
        choices.append(candidates(accepting, range(most + 1)))
    batches = sorted({*BATCHES, start.get("batch", BATCHES[0])})
    contexts = sorted({*contexts_of(work.model), start.get("context", CONTEXTS[0])})
    grid = [[replace(work, batch=b, context_tokens=n) for n in contexts] for b in batches]
    seconds = {}
    calibrated = {}
    used = {}
    free = {}
    for device in devices:
        free[device.name] = _free(device, work.model)
        for basis in BASES:
            try:
                rates = ceilings(device, work.dtype, basis)
            except ValueError:
                continue
            # a page that names no address cannot be taken to load anything
            figures = {name: asdict(replace(f, url="")) for name, f in rates.used.items()}
            used.setdefault(device.name, {})[basis] = figures
            times = [_seconds(grid, choice, rates, launch_us) for choice in choices]
            seconds.setdefault(device.name, {})[basis] = times
            if calibration:
                rates = replace(rates, calibration=calibration)
                times = [_seconds(grid, choice, rates, launch_us) for choice in choices]
                calibrated.setdefault(device.name, {})[basis] = times
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
        "batches": batches,
        "contexts": contexts,
        "means": means + [GIVEN] * (accepting is not None),
        "given": accepting.text if accepting is not None else "",
        "start": start,
        "weights_gb": memory.of(work).weights / 1e9,
        "request_gb": [_request_gb(w, choices[0]) for w in grid[0]],
        "room_gb": {d.name: _room_gb(d) for d in devices if d.name in seconds},
        "bases": BASIS_TEXT,
        "seconds": seconds,
        "calibrated": calibrated,
        "calibration": calibrated_by(calibration, list(seconds)) if calibration else "",
        "plans": plans,
        "used": used,
        "blocks": free,
    }


def _choice(mean: float, drafts: int, mask_rows: int) -> Choice:
    alpha = acceptance.solve_alpha(mean, drafts)
    most = min(MAX_PROPOSALS, drafts + 1)
    return candidates(acceptance.iid(alpha, drafts, mask_rows), range(most + 1))


def _request_gb(w: Workload, choice: Choice) -> list[float]:
    """Of one request, by P; how many branches there are decides, not which."""
    one = replace(w, batch=1)
    return [memory.of(drafting(one, steady)).of_requests / 1e9 for steady, _ in choice]


def _room_gb(device: Device) -> float | None:
    """What a deployment may take; None where the memory is not known."""
    size = device.figure("memory_gb", "quoted")
    return memory.room(size.value) / 1e9 if size else None


def _free(device: Device, model: ZayaConfig) -> list[dict]:
    """Free blocks by reading."""
    found = [blocks(device, model, reading) for reading in READINGS]
    return [
        {"reading": b.reading.name, "t": b.t, "unconfirmed": bool(b.unconfirmed)} for b in found
    ]


def _seconds(
    grid: list[list[Workload]], choice: Choice, rates: Ceilings, launch_us: float
) -> list[list[Sequence[float]]]:
    """[batch][context][P]"""

    def of_each_proposals(w: Workload) -> list[float]:
        return [float(f"{o.pass_seconds:.9g}") for o in plan(w, choice, rates, launch_us)]

    return [[of_each_proposals(w) for w in row] for row in grid]


def write(path: Path, content: dict) -> Path:
    template = Path(__file__).with_name("page.html").read_text()
    # "</script>" within the data would end the script
    text = json.dumps(content, separators=(",", ":")).replace("</", "<\\/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(template.replace("__DATA__", text))
    return path
