"""The tables that `calibrate` and `explain` print."""

from collections.abc import Sequence

from .calibration import Calibration, Fit
from .output import number, short, table
from .setting import Setting
from .whole_pass import Pass
from .workload import Workload


def fits(found: Calibration) -> None:
    table(
        f"{found.origin}, {found.dtype}: shares of its own ceilings, by {found.source}",
        (
            "op",
            "of limit",
            "of memory",
            "of arithmetic",
            "of tiles",
            "fixed us",
            "shapes",
            "worst error",
        ),
        [_fit_line(op, fit) for op, fit in [*found.ops.items(), ("any other", found.others)]],
        [
            "of limit: one efficiency for the op; where that does not fit, one of each phase, "
            "which may overlap, so that a share may exceed 100 %. tiles: weights loaded and "
            "widened on a CPU, a multiply-add for each and tile of 3 rows. fixed us: of a call. "
            "worst error: of a shape that the others predict.",
            f"Host, outside the ops: {short(found.host_us)} us a pass.",
        ],
    )


def _fit_line(op: str, fit: Fit) -> list[str]:
    def share(factor: float) -> str:
        return f"{1 / factor:.0%}" if factor else "-"

    return [
        op,
        share(fit.whole),
        share(fit.memory),
        share(fit.arithmetic),
        share(fit.tiles),
        f"{fit.fixed_us:.1f}",
        str(fit.shapes),
        number(fit.error, ".1%"),
    ]


def passes(found: Sequence[Pass], calibration: Calibration) -> None:
    table(
        f"\nWhole passes of {found[0].work.model.num_hidden_layers} layers: predicted from the ops",
        ("pass", "batch", "context", "measured ms", "calibrated ms", "error", "ideal ms", "error"),
        [
            (
                p.name,
                p.work.batch,
                p.work.context_tokens,
                f"{p.measured_ms:.1f}",
                f"{p.predicted_ms:.1f}" + "*" * (not p.held_out),
                f"{p.errors['error']:+.1%}",
                f"{p.ideal_ms:.1f}",
                f"{p.errors['ideal_error']:+.1%}",
            )
            for p in found
        ],
        [f"* its host cost was used, {short(calibration.host_us)} us, but not its time."],
    )


def explained(setting: Setting, rows: Sequence[dict], work: Workload, reach: tuple) -> None:
    """reach: of `calibration.explicable`."""
    first, block = rows
    (least_s, launch_us), (most_s, efficiency) = reach
    tokens = [block["measured_tokens_per_s"] * s / work.batch for s in (least_s, most_s)]
    branches = " ".join(map(str, work.branches))
    table(
        f"{setting.title} on {setting.rates.device}, batch {work.batch}, "
        f"context {work.context_tokens}, branches {branches}",
        (
            "",
            "tokens/pass",
            "launches",
            "ideal ms",
            "measured ms",
            "ideal tokens/s",
            "measured",
            "explained",
        ),
        [
            (
                r["mode"],
                f"{r['tokens_per_pass']:.2f}",
                r["launches"],
                f"{r['ideal_ms']:.2f}",
                f"{r['measured_ms']:.2f}",
                short(r["ideal_tokens_per_s"]),
                short(r["measured_tokens_per_s"]),
                short(r["explained_tokens_per_s"]),
            )
            for r in rows
        ],
        [
            f"Explained by {first['efficiency']:.1%} of the ideal rates and "
            f"{first['launch_us']:.1f} us a launch, the same for every op"
            + (
                "."
                if first["launch_us"]
                else "; no launch cost above 0 fits both, so it is fitted to both."
            ),
            f"With {tokens[0]:.2f} tokens a pass {launch_us:.0f} us a launch and no other loss "
            f"would explain both, with {tokens[1]:.2f} an efficiency of {efficiency:.1%} and no "
            "launch cost; with more, proposals cost this stack more than verify rows do.",
            f"Acceptance: {setting.accepting.text}. The measured ms follow from it.",
            f"Ideal times, basis {setting.rates.basis}; sources: `devices --sources`.",
        ],
    )
