"""The tables that `isa` and `check` print of their rows."""

from collections.abc import Sequence

from .assembly import CLASSES
from .check import Checked
from .output import number, table


def kernels(rows: Sequence[dict]) -> None:
    """What each kernel takes of a compute unit."""
    table(
        "Kernels as compiled, without an AMD device",
        ("kernel ", "arch ", "VGPR", "AGPR", "SGPR", "LDS B", "spill v/s", "waves/SIMD "),
        [
            (
                r["kernel"],
                r["arch"],
                r["vgpr"],
                r["agpr"],
                r["sgpr"],
                r["lds"],
                f"{r['vgpr_spill']}/{r['sgpr_spill']}",
                f"{r['waves_per_simd']} ({r['limited_by']})",
            )
            for r in rows
        ],
        [
            "spill v/s: VGPRs to memory, SGPRs to lanes of VGPRs. "
            "waves/SIMD: occupancy, and what limits it.",
        ],
        keys=2,
    )


def hot_loops(rows: Sequence[dict]) -> None:
    table(
        "\nHot loop, one iteration of a wave",
        (
            "kernel ",
            "arch ",
            "instr",
            *CLASSES,
            "16 B loads",
            "per mfma",
            "mfma cyc",
            "issue cyc",
            "bound ",
        ),
        [
            (
                r["kernel"],
                r["arch"],
                r["loop_instructions"],
                *(r[f"loop_{c}"] for c in CLASSES),
                r["loop_loads_16_bytes"],
                number(r["instructions_per_mfma"], ".1f"),
                number(r["loop_mfma_cycles"], "d") + "?" * r["mfma_cycles_unconfirmed"],
                r["loop_issue_cycles"],
                r["bound"],
            )
            for r in rows
        ],
        [
            "Each instruction counts once, those of branches and loops within the hot loop as "
            "well. mfma cyc: the matrix unit's cycles for a wave; issue cyc: 4 an instruction, "
            "the least in which one wave issues them. bound: the larger over all waves of a SIMD "
            "(vector instructions count 4 cycles, exponentials 16). - cycles not known, "
            "? not confirmed.",
        ],
        keys=2,
    )


def predictions(found: Sequence[Checked], dtype: str, threads: int) -> None:
    table(
        f"Predicted against measured on this CPU, {dtype}, {threads} thread{'s' * (threads > 1)}",
        (
            "op",
            "case ",
            "used to ",
            "limit ms",
            "measured ms",
            "of limit",
            "predicted ms",
            "error",
            "uncalibrated",
        ),
        [
            (
                c.op,
                c.case,
                "predict" if c.held_out else "fit",
                f"{c.limit_ms:.3f}",
                f"{c.measured_ms:.3f}",
                f"{c.limit_ms / c.measured_ms:.2f}",
                f"{c.predicted_ms:.3f}",
                f"{c.error:+.1%}",
                f"{c.ideal_error:+.1%}",
            )
            for c in found
        ],
        [_worst(op, found) for op in dict.fromkeys(c.op for c in found)],
        keys=2,
    )


def _worst(op: str, found: Sequence[Checked]) -> str:
    of_op = [c for c in found if c.op == op]
    errors = [c.error for c in of_op if c.held_out]
    return (
        f"{op}: mean efficiency {of_op[0].efficiency:.3f}; "
        f"worst error of the {len(errors)} shapes held out: {max(errors, key=abs):+.1%}, "
        f"without calibration {max((c.ideal_error for c in of_op if c.held_out), key=abs):+.1%}"
    )
