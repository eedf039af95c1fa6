"""The tables of `isa --predict`."""

from collections.abc import Sequence

from .assumptions import ASSUMPTIONS
from .output import table
from .predict import SUSTAINED


def show(rows: Sequence[dict]) -> None:
    launches(rows)
    assumptions()


def launches(rows: Sequence[dict]) -> None:
    rates = ", ".join(f"{arch} {rate / 1e12} TB/s" for arch, rate in SUSTAINED.items())
    table(
        "What a timing model predicts of the compiled kernels: no GPU has run",
        (
            "op ",
            "shape ",
            "kernel ",
            "by ",
            "arch ",
            "VGPR",
            "AGPR",
            "LDS B",
            "spill v/s",
            "waves/SIMD",
            "groups",
            "instr",
            "in flight B",
            "waits for ",
            "us",
            "share",
            "emulator ",
        ),
        [_line(r) for r in rows],
        [
            "instr: of a turn of the longest loop. in flight B: asked for from HBM and not got, "
            "mean of a compute unit that has work. us, share (of what streams sustain of HBM: "
            f"{rates}): nominal, and with the fast and the slow ends of all assumptions together. "
            "A whole op adds the launches.",
        ],
        keys=3,
    )


def _line(r: dict) -> tuple:
    times = f"{r['us']:.1f} ({r['us_fast']:.1f}-{r['us_slow']:.1f})"
    share = "-"
    if r["share"] is not None:
        share = f"{r['share']:.0%} ({r['share_fast']:.0%}-{r['share_slow']:.0%})"
    if "workgroups" not in r:
        blank = [""] * 9
        return r["op"], r["shape"], r["kernel"], r["backend"], r["arch"], *blank, times, share, ""
    return (
        r["op"],
        r["shape"],
        r["kernel"],
        r["backend"],
        r["arch"],
        r["vgpr"],
        r["agpr"],
        r["lds"],
        f"{r['vgpr_spill']}/{r['sgpr_spill']}",
        r["waves_per_simd"],
        r["workgroups"],
        r["instructions"] or "-",
        r["bytes_in_flight"] or "-",
        r["waits"],
        times,
        share,
        r["emulator"],
    )


def assumptions() -> None:
    table(
        "\nAssumed",
        ("name ", "value", "fast", "slow", "unit ", "source "),
        [
            (a.name, f"{a.value:g}", f"{a.fast:g}", f"{a.slow:g}", a.unit, a.source)
            for a in ASSUMPTIONS
        ],
    )
