"""What commands print: flat rows of plain values, with units in their names."""

from collections.abc import Iterable
from dataclasses import asdict, replace

from ..models.config import ZayaConfig
from . import budget, memory, simulate
from .blocks import READINGS, Blocks, Kind, affordable, blocks
from .calibration import Calibration
from .costs import Cost
from .devices import BASES, BASIS_TEXT, Ceilings, ceilings
from .figures import Device
from .plan import Accepting, Option, best, drafting
from .step import OpTime, pass_ops, time_ops
from .workload import Workload


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


def block_readings(
    devices: Iterable[Device], model: ZayaConfig, calibration: Calibration | None = None
) -> list[dict]:
    return [
        _reading(blocks(device, model, reading, calibration))
        for reading in READINGS
        for device in devices
    ]


def _reading(found: Blocks) -> dict:
    reading = found.reading
    return {
        "reading": reading.name,
        "device": found.device,
        "basis": reading.basis,
        "assumption": BASIS_TEXT[reading.basis],
        "block_rows": reading.block_rows,
        "dtype": reading.dtype,
        "kv_dtype": reading.kv_dtype,
        "t": found.t,
        "proposals": found.proposals,
        "calibrated_t": found.calibrated_t,
        "unavailable": found.unavailable,
        "unconfirmed": " ".join(found.unconfirmed),
    }


def whole_passes(
    devices: Iterable[Device],
    model: ZayaConfig,
    batch: int,
    context: int,
    slack: float,
    calibration: Calibration | None = None,
) -> list[dict]:
    work = Workload(model, batch, context, branches=())
    return [
        _whole_pass(device, work, basis, slack, calibration)
        for basis in BASES
        for device in devices
    ]


def _whole_pass(
    device: Device, work: Workload, basis: str, slack: float, calibration: Calibration | None
) -> dict:
    row = {
        "reading": "whole pass",
        "device": device.name,
        "basis": basis,
        "assumption": BASIS_TEXT[basis],
        "block_rows": work.verify_rows,
        "dtype": work.dtype,
        "kv_dtype": work.kv_dtype,
        "batch": work.batch,
        "context_tokens": work.context_tokens,
        "slack": slack,
        "proposals": None,
        "calibrated_proposals": None,
        "unavailable": "",
        "unconfirmed": "",
    }
    try:
        rates = ceilings(device, work.dtype, basis)
    except ValueError as error:
        return row | {"unavailable": str(error)}
    row["proposals"] = affordable(work, rates, slack)
    if calibration:
        row["calibrated_proposals"] = affordable(
            work, replace(rates, calibration=calibration), slack
        )
    return row | {"unconfirmed": " ".join(rates.doubtful)}


def attention_kinds(
    kinds: Iterable[Kind], query_rows: int, rates: Ceilings, itemsize_bytes: float = 2.0
) -> list[dict]:
    rows = []
    ridge = rates.calibrated_ridge("block_attention")
    for kind in kinds:
        cache_bytes = kind.cached_elements * itemsize_bytes
        one_row = kind.flops_per_row / cache_bytes
        rows.append(
            {
                "kind": kind.name,
                "query_heads": kind.query_heads,
                "query_rows": query_rows,
                "cache_bytes_per_token": cache_bytes,
                "flops_per_row": kind.flops_per_row,
                "intensity_1_row": one_row,
                "intensity": one_row * query_rows,
                "device": rates.device,
                "basis": rates.basis,
                "t": rates.ridge_flops_per_byte / (one_row * query_rows),
                "calibrated_t": ridge and ridge / (one_row * query_rows),
            }
        )
    return rows


def steps(
    autoregressive: Workload,
    drafting: Workload,
    tokens_per_pass: float,
    rates: Ceilings,
    launch_us: float,
    calibrated: Ceilings | None = None,
) -> list[dict]:
    """Ops of both modes, each mode ended by its total; with calibrated times beside the ideal ones
    where there are any."""
    rows = _steps(autoregressive, drafting, tokens_per_pass, rates, launch_us)
    if calibrated is None:
        return rows
    measured = _steps(autoregressive, drafting, tokens_per_pass, calibrated, launch_us)
    ideal = {(r["mode"], r["op"]): r for r in rows}
    # the host is an op of the calibrated times only
    merged = [r | {"us": 0.0, "share": 0.0} | ideal.get((r["mode"], r["op"]), {}) for r in measured]
    names = ("us", "share", "tokens_per_s", "speed_up")
    return [
        row | {f"calibrated_{name}": r[name] for name in names if name in r}
        for row, r in zip(merged, measured, strict=True)
    ]


def _steps(
    autoregressive: Workload,
    drafting: Workload,
    tokens_per_pass: float,
    rates: Ceilings,
    launch_us: float,
) -> list[dict]:
    one = time_ops(pass_ops(autoregressive), rates, launch_us)
    many = time_ops(pass_ops(drafting), rates, launch_us)
    base = autoregressive.batch / _seconds(one)
    rate = drafting.batch * tokens_per_pass / _seconds(many)
    return [
        *_mode("autoregressive", one, rates, 1.0, base, base),
        *_mode("block", many, rates, tokens_per_pass, rate, base),
    ]


def _seconds(timed: list[OpTime]) -> float:
    return sum(t.seconds for t in timed)


def _mode(
    mode: str,
    timed: list[OpTime],
    rates: Ceilings,
    tokens_per_pass: float,
    tokens_per_s: float,
    base: float,
) -> list[dict]:
    common = {"mode": mode, "device": rates.device, "basis": rates.basis, "dtype": rates.dtype}
    total = _seconds(timed)
    rows = [
        {
            **common,
            "op": t.op.name,
            "us": t.seconds * 1e6,
            "share": t.seconds / total,
            "bound": t.bound,
            **asdict(t.op.cost),
            "launches": t.op.launches,
        }
        for t in timed
    ]
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
            "tokens_per_pass": tokens_per_pass,
            "tokens_per_s": tokens_per_s,
            "speed_up": tokens_per_s / base,
        }
    )
    return rows


def plans(
    options: list[Option],
    acceptance: Accepting,
    simulated_passes: int | None,
    work: Workload,
    rates: Ceilings,
) -> list[dict]:
    base = next((o.tokens_per_s for o in options if not o.steady.branches), None)
    chosen = best(options)
    most = max(len(o.steady.branches) for o in options)
    rows = []
    for o in options:
        branches = o.steady.branches
        row = {
            "proposals": len(branches),
            "branches": list(branches),
            "tokens_per_pass": o.steady.tokens_per_pass,
            "mean_drafts": o.steady.mean_drafts,
            "exact": o.exact,
            "pass_ms": o.pass_seconds * 1e3,
            "tokens_per_s": o.tokens_per_s,
            "speed_up": o.tokens_per_s / base if base else None,
            "best": o is chosen,
            "capped": o is chosen and 0 < len(branches) == most < work.verify_rows,
            "max_batch": memory.max_batch(drafting(work, o.steady), rates),
            "fits": memory.fits(drafting(work, o.steady), rates),
        }
        if simulated_passes:
            row["simulated_tokens_per_pass"] = (
                simulate.tokens_per_pass(acceptance, branches, simulated_passes)
                if branches
                else 1.0
            )
        rows.append(row)
    return rows


def beside(rows: list[dict], measured: list[Option]) -> None:
    """Adds calibrated times to the rows of `plans`."""
    chosen = best(measured)
    base = measured[0].tokens_per_s
    for row, o in zip(rows, measured, strict=True):
        row["calibrated_pass_ms"] = o.pass_seconds * 1e3
        row["calibrated_tokens_per_s"] = o.tokens_per_s
        row["calibrated_speed_up"] = o.tokens_per_s / base
        row["calibrated_best"] = o is chosen


def budgets(
    model: ZayaConfig,
    row_counts: Iterable[int],
    device: Device,
    basis: str,
    calibration: Calibration | None = None,
) -> list[dict]:
    rates = replace(ceilings(device, "bf16", basis), calibration=calibration)
    units = device.figure("compute_units", "quoted")
    if units is None:
        raise ValueError(
            f"budget: device: expected one of known compute_units, got {device.name!r}"
        )
    units, bandwidth = int(units.value), rates.memory_bytes_per_s
    return [
        {
            "device": device.name,
            "rows": count,
            "kernel": launch.kernel,
            "groups": launch.groups,
            "compute_units": units,
            "bytes": launch.bytes,
            "bytes_in_flight_a_unit": launch.unit_bytes(units),
            "share": launch.share(units, bandwidth),
            "us": 1e6 * launch.seconds(units, bandwidth),
            "calibrated_us": _calibrated_us(launch, launches, rates) if calibration else None,
            "bytes_per_s": bandwidth,
        }
        for count in row_counts
        for launches in [budget.launches(model, count)]
        for launch in launches
    ]


def _calibrated_us(launch: budget.Launch, launches: list[budget.Launch], rates: Ceilings) -> float:
    """Of its bytes alone; the launches of an op share the fixed cost of a call."""
    op = launch.kernel.split()[0]
    share = 1 / sum(other.kernel.split()[0] == op for other in launches)
    phases = rates.phases(Cost(0, 0, launch.bytes), 1, op)
    return 1e6 * rates.calibration.seconds(op, phases, share, 1)
