"""The tables that `step`, `plan` and `sweep` print of their rows."""

from collections.abc import Sequence

from .devices import BASIS_TEXT, Ceilings
from .output import short, table
from .step import fits
from .workload import Workload


def step(
    title: str, rows: Sequence[dict], work: Workload, rates: Ceilings, launch_us: float
) -> None:
    """work: the pass with proposals."""
    one = {r["op"]: r for r in rows if r["mode"] == "autoregressive"}
    many = {r["op"]: r for r in rows if r["mode"] == "block"}
    branches = " ".join(map(str, work.branches))
    table(
        f"{title} on {rates.device}, batch {work.batch}, context {work.context_tokens}, "
        f"{work.rows} rows a request: V = {work.verify_rows}, "
        f"P = {len(work.branches)} x M = {work.mask_rows}, branches {branches}",
        (
            "op",
            "AR us",
            "share",
            "bound ",
            "block us",
            "share",
            "bound ",
            "GFLOP",
            "MB",
            "launches",
        ),
        # the pass with proposals has every op of the other
        [_step_line(op, one.get(op), row) for op, row in many.items()],
        [
            _speeds(one["total"], many["total"], work, rates),
            "GFLOP, MB (of main memory) and launches are those of the block pass.",
            *rate_notes(rates, launch_us),
        ],
    )


def _speeds(one: dict, many: dict, work: Workload, rates: Ceilings) -> str:
    memory = "" if fits(work, rates) else " Weights and cache exceed the device's memory."
    return (
        f"Autoregressive {short(one['tokens_per_s'])} tokens/s; "
        f"block diffusion {short(many['tokens_per_s'])} tokens/s "
        f"at {many['tokens_per_pass']:.2f} tokens a pass: {many['speed_up']:.2f}x.{memory}"
    )


def _step_line(op: str, one: dict | None, many: dict) -> list[str]:
    def half(row: dict | None) -> list[str]:
        if row is None:
            return ["-", "-", ""]
        return [f"{row['us']:.1f}", f"{row['share']:.1%}", row["bound"]]

    return [
        op,
        *half(one),
        *half(many),
        f"{many['flops'] / 1e9:.2f}",
        f"{many['bytes'] / 1e6:.1f}",
        str(many["launches"]),
    ]


def rate_notes(rates: Ceilings, launch_us: float) -> list[str]:
    """What the times rest on."""
    used = ", ".join(
        f"{name} {figure.value:.5g} ({figure.kind}"
        + ", unconfirmed" * (figure.confidence == "unconfirmed")
        + ")"
        for name, figure in rates.used.items()
    )
    launches = (
        f"{launch_us:g} us a launch" if launch_us else "launch overhead not counted (--launch-us)"
    )
    return [
        "Ideal times: each op reads its inputs from main memory and overlaps all it does; "
        f"{launches}.",
        f"Basis {rates.basis}: {BASIS_TEXT[rates.basis]}. Rates: {used}. "
        "Sources: `devices --sources`.",
    ]


def plan(
    title: str, rows: Sequence[dict], work: Workload, rates: Ceilings, launch_us: float
) -> None:
    simulated = "simulated_tokens_per_pass" in rows[0]
    table(
        f"{title} on {rates.device}, batch {work.batch}, context {work.context_tokens}: "
        "P proposals, best branches",
        (
            "P",
            "branches ",
            "tokens/pass",
            *(["simulated"] if simulated else []),
            "drafts/pass",
            "pass ms",
            "tokens/s",
            "vs AR",
            "",
        ),
        [_plan_line(r, simulated) for r in rows],
        rate_notes(rates, launch_us),
    )


def _plan_line(row: dict, simulated: bool) -> list[str]:
    branches = " ".join(map(str, row["branches"])) or "autoregressive"
    return [
        str(row["proposals"]),
        branches + " (not proven best)" * (not row["exact"]),
        f"{row['tokens_per_pass']:.3f}",
        *([f"{row['simulated_tokens_per_pass']:.3f}"] if simulated else []),
        f"{row['mean_drafts']:.2f}",
        f"{row['pass_ms']:.3f}",
        short(row["tokens_per_s"]),
        f"{row['speed_up']:.2f}x" if row["speed_up"] else "-",
        "best" * row["best"],
    ]


def sweep(title: str, rows: Sequence[dict], rates: Ceilings, launch_us: float) -> None:
    """The best P of each batch and context."""
    best = {(r["batch"], r["context_tokens"]): r for r in rows if r["best"]}
    batches = dict.fromkeys(r["batch"] for r in rows)
    contexts = dict.fromkeys(r["context_tokens"] for r in rows)
    table(
        f"{title} on {rates.device}: best P, tokens/s of the batch (speed-up over autoregressive)",
        ("batch", *(f"context {n}" for n in contexts)),
        [(batch, *(_best(best[batch, n]) for n in contexts)) for batch in batches],
        [
            "* weights and cache exceed the device's memory.",
            *rate_notes(rates, launch_us),
        ],
    )


def _best(row: dict) -> str:
    speed = f"{short(row['tokens_per_s'])} ({row['speed_up']:.2f}x)"
    return f"P={row['proposals']} {speed}" + "*" * (not row["fits"])
