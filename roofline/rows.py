"""What commands print: flat rows of plain values with units in their names, and their cells in
tables."""

from collections.abc import Iterable
from dataclasses import asdict

from . import simulate as simulation
from .acceptance import Acceptance
from .blocks import READINGS, Blocks, Kind, affordable, blocks
from .devices import BASES, BASIS_TEXT, Ceilings, Device, ceilings
from .output import short
from .plan import Option
from .step import Workload, fits, pass_ops, time_ops


def device_figures(devices: Iterable[Device]) -> list[dict]:
    return [
        {
            "device": device.name,
            "arch": device.arch,
            "figure": name,
            **asdict(figure),
            "used": i == 0,
        }
        for device in devices
        for section in device.figures.values()
        for name, found in section.items()
        for i, figure in enumerate(found)
    ]


def cell(row: dict | None) -> str:
    return (
        "-" if row is None else f"{row['value']:.5g}" + "?" * (row["confidence"] == "unconfirmed")
    )


def block_readings(devices: Iterable[Device], model) -> list[dict]:
    return [_reading(blocks(device, model, reading)) for reading in READINGS for device in devices]


def _reading(found: Blocks) -> dict:
    r = found.reading
    return {
        "reading": r.name,
        "device": found.device,
        "basis": r.basis,
        "assumption": BASIS_TEXT[r.basis],
        "block_rows": r.block_rows,
        "dtype": r.dtype,
        "kv_dtype": r.kv_dtype,
        "t": found.t,
        "proposals": found.proposals,
        "unavailable": found.unavailable,
        "unconfirmed": " ".join(found.unconfirmed),
    }


def t_cell(row: dict) -> str:
    return (
        "-"
        if row["t"] is None
        else f"{row['t']:.2f} ({row['proposals']:.2f})" + "?" * bool(row["unconfirmed"])
    )


def whole_passes(
    devices: Iterable[Device], model, batch: int, context: int, slack: float
) -> list[dict]:
    rows, work = [], Workload(model, batch, context, branches=())
    for basis in BASES:
        for device in devices:
            row = {
                "reading": "whole pass",
                "device": device.name,
                "basis": basis,
                "assumption": BASIS_TEXT[basis],
                "block_rows": 17,
                "dtype": "bf16",
                "kv_dtype": "bf16",
                "batch": batch,
                "context_tokens": context,
                "slack": slack,
                "proposals": None,
                "unavailable": "",
                "unconfirmed": "",
            }
            try:
                rates = ceilings(device, "bf16", basis)
            except ValueError as error:
                rows.append(row | {"unavailable": str(error)})
            else:
                rows.append(
                    row
                    | {
                        "proposals": affordable(work, rates, slack),
                        "unconfirmed": " ".join(rates.doubtful),
                    }
                )
    return rows


def attention_kinds(
    kinds: Iterable[Kind], query_rows: int, rates: Ceilings, itemsize_bytes: float = 2.0
) -> list[dict]:
    rows = []
    for kind in kinds:
        one = kind.flops_per_row / (kind.cached_elements * itemsize_bytes)
        rows.append(
            {
                "kind": kind.name,
                "query_heads": kind.query_heads,
                "query_rows": query_rows,
                "cache_bytes_per_token": kind.cached_elements * itemsize_bytes,
                "flops_per_row": kind.flops_per_row,
                "intensity_1_row": one,
                "intensity": one * query_rows,
                "device": rates.device,
                "basis": rates.basis,
                "t": rates.ridge_flops_per_byte / (one * query_rows),
            }
        )
    return rows


def steps(
    ar: Workload, drafting: Workload, tokens_per_pass: float, rates: Ceilings, launch_us: float
) -> list[dict]:
    """Ops of both modes, each mode ended by its total."""
    rows, base = [], None
    for mode, work, tokens in (("autoregressive", ar, 1.0), ("block", drafting, tokens_per_pass)):
        timed = time_ops(pass_ops(work), rates, launch_us)
        total = sum(t.seconds for t in timed)
        base = base or work.batch / total
        common = {"mode": mode, "device": rates.device, "basis": rates.basis, "dtype": rates.dtype}
        for t in timed:
            rows.append(
                {
                    **common,
                    "op": t.op.name,
                    "us": t.seconds * 1e6,
                    "share": t.seconds / total,
                    "bound": t.bound,
                    **asdict(t.op.cost),
                    "launches": t.op.launches,
                }
            )
        whole = sum((t.op.cost for t in timed[1:]), timed[0].op.cost)
        rows.append(
            {
                **common,
                "op": "total",
                "us": total * 1e6,
                "share": 1.0,
                "bound": "",
                **asdict(whole),
                "launches": sum(t.op.launches for t in timed),
                "tokens_per_pass": tokens,
                "tokens_per_s": work.batch * tokens / total,
                "speed_up": work.batch * tokens / total / base,
            }
        )
    return rows


def step_line(op: str, ar: dict | None, block: dict | None) -> list[str]:
    def half(row):
        return [f"{row['us']:.1f}", f"{row['share']:.1%}", row["bound"]] if row else ["-", "-", ""]

    shown = block or ar
    return [
        op,
        *half(ar),
        *half(block),
        f"{shown['flops'] / 1e9:.2f}",
        f"{shown['bytes'] / 1e6:.1f}",
        str(shown["launches"]),
    ]


def step_notes(rows: list[dict], work: Workload, rates: Ceilings, launch_us: float) -> list[str]:
    ar, block = (r for r in rows if r["op"] == "total")
    memory = "" if _fits(work, rates) else " Weights and cache exceed the device's memory."
    return [
        f"Autoregressive {short(ar['tokens_per_s'])} tokens/s; block diffusion {short(block['tokens_per_s'])} tokens/s at "
        f"{block['tokens_per_pass']:.2f} tokens a pass: {block['speed_up']:.2f}x.{memory}",
        "GFLOP, MB (of main memory) and launches are those of the block pass.",
        *rate_notes(rates, launch_us),
    ]


def rate_notes(rates: Ceilings, launch_us: float) -> list[str]:
    """What the times rest on."""
    used = ", ".join(
        f"{name} {figure.value:.5g} ({figure.kind}{', unconfirmed' * (figure.confidence == 'unconfirmed')})"
        for name, figure in rates.used.items()
    )
    launches = (
        f"{launch_us:g} us a launch" if launch_us else "launch overhead not counted (--launch-us)"
    )
    return [
        "Ideal times: each op reads its inputs from main memory and overlaps all it does; "
        + launches
        + ".",
        f"Basis {rates.basis}: {BASIS_TEXT[rates.basis]}. Rates: {used}. Sources: `devices --sources`.",
    ]


def plans(options: list[Option], law: Acceptance, simulated_passes: int | None) -> list[dict]:
    base = next((o.tokens_per_s for o in options if not o.steady.branches), None)
    best = max(options, key=lambda o: o.tokens_per_s)
    rows = []
    for o in options:
        row = {
            "proposals": len(o.steady.branches),
            "branches": list(o.steady.branches),
            "tokens_per_pass": o.steady.tokens_per_pass,
            "mean_drafts": o.steady.mean_drafts,
            "exact": o.exact,
            "pass_ms": o.pass_seconds * 1e3,
            "tokens_per_s": o.tokens_per_s,
            "speed_up": o.tokens_per_s / base if base else None,
            "best": o is best,
        }
        if simulated_passes:
            row["simulated_tokens_per_pass"] = (
                simulation.tokens_per_pass(law, o.steady.branches, simulated_passes)
                if o.steady.branches
                else 1.0
            )
        rows.append(row)
    return rows


def plan_line(row: dict, simulated: bool) -> list[str]:
    name = " ".join(map(str, row["branches"])) or "autoregressive"
    check = [f"{row['simulated_tokens_per_pass']:.3f}"] if simulated else []
    return [
        str(row["proposals"]),
        name + " (not proven best)" * (not row["exact"]),
        f"{row['tokens_per_pass']:.3f}",
        *check,
        f"{row['mean_drafts']:.2f}",
        f"{row['pass_ms']:.3f}",
        short(row["tokens_per_s"]),
        f"{row['speed_up']:.2f}x" if row["speed_up"] else "-",
        "best" * row["best"],
    ]


def sweep_cell(row: dict) -> str:
    return f"P={row['proposals']} {short(row['tokens_per_s'])} ({row['speed_up']:.2f}x)" + "*" * (
        not row["fits"]
    )


def _fits(work: Workload, rates: Ceilings) -> bool:
    return rates.memory_gb is None or fits(work, rates.memory_gb * 1e9)
