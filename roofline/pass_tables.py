"""The tables that `step`, `plan` and `sweep` print of their rows."""

from collections.abc import Sequence
from dataclasses import replace

from . import experts, memory
from .calibration import Calibration
from .devices import BASIS_TEXT, Ceilings
from .output import short, table
from .plan import Option
from .setting import Setting
from .workload import Workload


def step(setting: Setting, rows: Sequence[dict], work: Workload) -> None:
    """work: the pass with proposals."""
    one = {r["op"]: r for r in rows if r["mode"] == "autoregressive"}
    many = {r["op"]: r for r in rows if r["mode"] == "block"}
    branches = " ".join(map(str, work.branches))
    calibrated = setting.calibrated is not None
    head = ("us", "calibrated") if calibrated else ("us",)
    table(
        f"{setting.title} on {setting.rates.device}, batch {work.batch}, "
        f"context {work.context_tokens}, "
        f"{work.rows} rows a request: V = {work.verify_rows}, "
        f"P = {len(work.branches)} x M = {work.mask_rows}, branches {branches}",
        (
            "op",
            *(f"AR {name}" for name in head),
            "share",
            "bound ",
            *(f"block {name}" for name in head),
            "share",
            "bound ",
            "GFLOP",
            "MB",
            "launches",
        ),
        # the pass with proposals has every op of the other
        [_step_line(op, one.get(op), row, calibrated) for op, row in many.items()],
        [
            _speeds("", one["total"], many["total"]),
            *([_speeds("calibrated_", one["total"], many["total"])] if calibrated else []),
            "GFLOP, MB (of main memory) and launches are those of the block pass.",
            _experts(setting, work),
            *memory_notes([work], setting.rates),
            f"Acceptance: {setting.accepting.text}.",
            *rate_notes(setting),
        ],
    )


def _experts(setting: Setting, work: Workload) -> str:
    units = setting.device.figure("compute_units", "quoted")
    return experts.spread(work, int(units.value) if units else None).text


def _speeds(kind: str, one: dict, many: dict) -> str:
    return (
        f"{'Calibrated' if kind else 'Ideal'}: "
        f"autoregressive {short(one[kind + 'tokens_per_s'])} tokens/s; "
        f"block diffusion {short(many[kind + 'tokens_per_s'])} tokens/s "
        f"at {many['tokens_per_pass']:.2f} tokens a pass: {many[kind + 'speed_up']:.2f}x."
    )


def memory_notes(works: Sequence[Workload], rates: Ceilings) -> list[str]:
    """Whether the workloads fit, and what the sizes assume."""
    large = [w for w in works if not memory.fits(w, rates)]
    if not large:
        return []
    worst = max(large, key=lambda w: memory.of(w).total)
    found = memory.of(worst)
    most = memory.max_batch(worst, rates)
    return [
        f"TOO LARGE: batch {worst.batch} at context {worst.context_tokens} needs "
        f"{short(found.total / 1e9)} GB (weights {short(found.weights / 1e9)}, "
        f"cache {short(found.cache / 1e9)}, the rest "
        f"{short((found.total - found.weights - found.cache) / 1e9)}) of "
        f"{short(memory.room(rates.memory_gb) / 1e9)} GB, "
        f"{memory.RESERVE:.0%} of the memory being reserved; at most {most} requests fit. "
        "See `memory`."
    ]


def _step_line(op: str, one: dict | None, many: dict, calibrated: bool) -> list[str]:
    def half(row: dict | None) -> list[str]:
        times = ["us", *(["calibrated_us"] if calibrated else [])]
        if row is None:
            return [*("-" for _ in times), "-", ""]
        return [*(f"{row[t]:.1f}" for t in times), f"{row['share']:.1%}", row["bound"]]

    return [
        op,
        *half(one),
        *half(many),
        f"{many['flops'] / 1e9:.2f}",
        f"{many['bytes'] / 1e6:.1f}",
        str(many["launches"]),
    ]


def rate_notes(setting: Setting) -> list[str]:
    """What the times rest on."""
    rates = setting.rates
    used = ", ".join(
        f"{name} {figure.value:.5g} ({figure.kind}"
        + ", unconfirmed ?" * (figure.confidence == "unconfirmed")
        + ")"
        for name, figure in rates.used.items()
    )
    launches = (
        f"{setting.launch_us:g} us a launch"
        if setting.launch_us
        else "launch overhead not counted (--launch-us)"
    )
    return [
        f"Ideal times: each op {_activations(rates)} and overlaps all it does; {launches}.",
        f"Basis {rates.basis}: {BASIS_TEXT[rates.basis]}. Rates: {used}. "
        "Sources: `devices --sources`.",
        *_gpus(setting),
        calibration_note(setting),
    ]


def _gpus(setting: Setting) -> list[str]:
    """How several GPUs share a pass."""
    work, rates = setting.work, setting.rates
    if work.tp == 1:
        return []
    shared = "whole experts" if work.ep > 1 else "a share of every expert"
    busiest = (
        "; the busiest has two standard deviations more rows and experts than the mean (assumed)"
        if work.ep > 1
        else ""
    )
    return [
        f"Times of each of {work.tp} GPUs, tokens of all: a share of the heads, channels and "
        f"vocabulary, {shared}{busiest}. Two ring sums a layer at "
        f"{rates.link_bytes_per_s / 1e9:g} GB/s and {1e6 * rates.link_s:g} us each (--link), which "
        "nothing overlaps."
    ]


def _activations(rates: Ceilings) -> str:
    if rates.activations == "memory":
        return "reads its inputs from main memory"
    if not rates.cache_bytes:
        return "reads its inputs from main memory (no last-level cache is known)"
    size = f"{rates.cache_bytes / 2**20:.0f} MiB"
    return f"finds activations of up to {size} in the last-level cache"


def calibration_note(setting: Setting) -> str:
    if setting.calibrated is None:
        return "No calibration: a real stack is slower; `calibrate` says by how much."
    found = setting.calibrated.calibration
    return calibrated_by(found, [setting.rates.device])


def calibrated_by(found: Calibration, devices: Sequence[str]) -> str:
    """What calibrated times of these devices rest on."""
    others = [name for name in devices if not found.of(name)]
    measured = f"{', '.join(found.ops) or 'whole passes'} on {found.origin}"
    measured += f" (assumed of {', '.join(others)} as well ?)" if others else ""
    return (
        f"Calibrated by {found.source}: {measured}; other ops at the mean efficiency; "
        f"{short(found.launch_us)} us a launch, {short(found.host_us)} us of the host a pass."
    )


def plan(setting: Setting, rows: Sequence[dict], other: Option | None) -> None:
    """other: the best option by the other attribution."""
    work = setting.work
    simulated = "simulated_tokens_per_pass" in rows[0]
    calibrated = setting.calibrated is not None
    table(
        f"{setting.title} on {setting.rates.device}, batch {work.batch}, "
        f"context {work.context_tokens}: P proposals, best branches",
        (
            "P",
            "branches ",
            "tokens/pass",
            *(["simulated"] if simulated else []),
            "drafts/pass",
            "pass ms",
            "tokens/s",
            "vs AR",
            *(["calibrated ms", "tokens/s", "vs AR"] if calibrated else []),
            "",
        ),
        [_plan_line(r, simulated, calibrated) for r in rows],
        [
            _range(setting, rows, other),
            *_plan_warnings(setting, rows),
            *rate_notes(setting),
        ],
    )


def _plan_line(row: dict, simulated: bool, calibrated: bool) -> list[str]:
    branches = " ".join(map(str, row["branches"])) or "autoregressive"
    best = row["calibrated_best" if calibrated else "best"]
    marks = [
        "best" * best,
        "at the cap" * (best and row["capped"]),
        "too large" * (not row["fits"]),
    ]
    return [
        str(row["proposals"]),
        branches + " (not proven best)" * (not row["exact"]),
        f"{row['tokens_per_pass']:.3f}",
        *([f"{row['simulated_tokens_per_pass']:.3f}"] if simulated else []),
        f"{row['mean_drafts']:.2f}",
        f"{row['pass_ms']:.3f}",
        short(row["tokens_per_s"]),
        f"{row['speed_up']:.2f}x" if row["speed_up"] else "-",
        *_calibrated_cells(row, calibrated),
        ", ".join(filter(None, marks)),
    ]


def _calibrated_cells(row: dict, calibrated: bool) -> list[str]:
    if not calibrated:
        return []
    return [
        f"{row['calibrated_pass_ms']:.3f}",
        short(row["calibrated_tokens_per_s"]),
        f"{row['calibrated_speed_up']:.2f}x",
    ]


def _range(setting: Setting, rows: Sequence[dict], other: Option | None) -> str:
    """What the acceptance is, and the best P by each attribution."""
    kind = "calibrated_best" if setting.calibrated else "best"
    own = next(r for r in rows if r[kind])
    text = f"Acceptance: {setting.accepting.text}."
    if other is None:
        return text
    count = len(other.steady.branches)
    low, high = sorted((own["proposals"], count))
    span = f"P = {low}" if low == high else f"P = {low} .. {high}"
    how = setting.otherwise.text.split("; by ")[1].split(":")[0].split(";")[0]
    return (
        f"{text} By {how} the best is P = {count} with {other.steady.tokens_per_pass:.2f} tokens "
        f"a pass: {span} over both readings."
    )


def _plan_warnings(setting: Setting, rows: Sequence[dict]) -> list[str]:
    notes = []
    if any(r["capped"] for r in rows):
        notes.append("At the cap: a greater --max-proposals may find a better P.")
    large = [r for r in rows if not r["fits"]]
    if large:
        worst = max(large, key=lambda r: r["proposals"])
        widest = replace(setting.work, branches=tuple(worst["branches"]))
        notes += memory_notes([widest], setting.rates)
    return notes


def sweep(setting: Setting, rows: Sequence[dict]) -> None:
    """The best P of each batch and context."""
    calibrated = setting.calibrated is not None
    kind = "calibrated_" if calibrated else ""
    best = {(r["batch"], r["context_tokens"]): r for r in rows if r["best"]}
    measured = {(r["batch"], r["context_tokens"]): r for r in rows if r.get("calibrated_best")}
    batches = dict.fromkeys(r["batch"] for r in rows)
    contexts = dict.fromkeys(r["context_tokens"] for r in rows)

    def cell(at: tuple[int, int]) -> str:
        ideal = _best(best[at], "")
        return f"{ideal} | {_best(measured[at], kind)}" if calibrated else ideal

    table(
        f"{setting.title} on {setting.rates.device}: best P, tokens/s of the batch "
        f"(speed-up over autoregressive){', ideal | calibrated' * calibrated}",
        ("batch", *(f"context {n}" for n in contexts)),
        [(batch, *(cell((batch, n)) for n in contexts)) for batch in batches],
        [
            "* does not fit into the device's memory (see `memory`); + the best P is the greatest "
            "that was tried.",
            f"Acceptance: {setting.accepting.text}.",
            *rate_notes(setting),
        ],
    )


def _best(row: dict, kind: str) -> str:
    speed = f"{short(row[kind + 'tokens_per_s'])} ({row[kind + 'speed_up']:.2f}x)"
    marks = "*" * (not row["fits"]) + "+" * row["capped"]
    return f"P={row['proposals']} {speed}{marks}"
