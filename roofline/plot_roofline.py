"""The roofline with every op on it."""

from math import log10
from pathlib import Path

from .canvas import Subject, save
from .devices import Ceilings
from .output import short
from .plan import drafting
from .step import OpTime, pass_ops, time_ops

_COLORS = {
    "memory": "tab:blue",
    "matrix": "tab:orange",
    "arithmetic": "tab:orange",
    "vector": "tab:green",
    "L2": "tab:purple",
    "cache": "tab:cyan",
    "link": "tab:brown",
    "host": "tab:gray",
    "launch": "tab:red",
}


def roofline(subject: Subject, quoted: Ceilings, folder: Path) -> list[Path]:
    """A panel for each pass: every op at its intensity (products and other arithmetic over bytes of
    main memory) and predicted rate, under the quoted roof and, where it differs, the one that the
    times rest on."""
    used = subject.rates
    passes = {
        "autoregressive": subject.work.autoregressive(),
        "block diffusion": drafting(subject.work, subject.steady),
    }
    timed = {
        mode: time_ops(pass_ops(work), used, subject.launch_us) for mode, work in passes.items()
    }
    calibrated = {
        mode: time_ops(pass_ops(work), subject.calibrated) if subject.calibrated else []
        for mode, work in passes.items()
    }
    every = [*timed.values(), *calibrated.values()]
    places = [_place(t) for ops in every for t in ops]
    lowest = min(place[1] for place in places if place)
    peak = quoted.matrix_flops_per_s / 1e12

    def draw(figure, *panels) -> None:
        for axes, (mode, work) in zip(panels, passes.items(), strict=True):
            _roofs(axes, quoted, used)
            _points(axes, timed[mode])
            _calibrated(axes, calibrated[mode])
            axes.set(
                xscale="log",
                yscale="log",
                xlim=(0.1, 1e6),
                ylim=(min(1.5e-5 * peak, 0.3 * lowest), 20 * peak),
                xlabel="FLOP per byte of main memory",
                title=f"{mode}, {work.rows} row{'s' * (work.rows > 1)} a request",
            )
            axes.title.set_size(10)
            axes.grid(alpha=0.2)
        panels[0].set_ylabel(f"TFLOP/s ({used.dtype})")
        panels[0].legend(loc="upper left", fontsize=8)
        figure.suptitle(_title(subject), fontsize=11)

    return save("roofline", folder, draw, (13, 6.2), len(passes))


def _title(subject: Subject) -> str:
    work = subject.work
    return (
        f"{subject.where}, batch {work.batch}, context {work.context_tokens}, "
        f"P = {subject.proposals}, {subject.accepting}\n{subject.basis(subject.rates.unconfirmed)}"
    )


def _roofs(axes, quoted: Ceilings, used: Ceilings) -> None:
    intensities = sorted([0.01, quoted.ridge_flops_per_byte, used.ridge_flops_per_byte, 1e6])
    roofs = [(quoted, "-", "measured" if quoted is used else "quoted peaks")]
    if used is not quoted and used.basis != "peak":
        roofs.append((used, "--", used.basis))
    for rates, style, text in roofs:
        flops = rates.matrix_flops_per_s
        memory = rates.memory_bytes_per_s
        axes.plot(
            intensities,
            [min(flops, at * memory) / 1e12 for at in intensities],
            style,
            color="black",
            linewidth=1.2,
            label=f"{text}: {short(flops / 1e12)} TFLOP/s, {short(memory / 1e12)} TB/s",
        )
    vector = used.vector_flops_per_s / 1e12
    axes.axhline(
        vector,
        color="gray",
        linewidth=1,
        linestyle=":",
        label=f"fp32 vector arithmetic: {short(vector)} TFLOP/s",
    )


def _place(timed: OpTime) -> tuple[float, float] | None:
    """Intensity in FLOP per byte and rate in TFLOP/s; None without arithmetic."""
    flops = timed.op.cost.flops + timed.op.cost.vector_flops
    if not flops:
        return None
    return flops / timed.op.cost.bytes, flops / timed.seconds / 1e12


def _calibrated(axes, timed: list[OpTime]) -> None:
    """The rates that follow from what was measured, as crosses below the ideal points."""
    places = [place for t in timed if (place := _place(t))]
    if places:
        axes.plot(*zip(*places, strict=True), "x", color="black", label="calibrated")


def _points(axes, timed: list[OpTime]) -> None:
    """With what bounds each op, and its share of the time. Ops share intensities, so that their
    names would overlap beside the points. They stand in a column instead, from below in the order
    of the points, with lines to them."""
    total = sum(t.seconds for t in timed)
    placed = [(place, t) for t in timed if (place := _place(t))]
    placed.sort(key=lambda item: (round(log10(item[0][1]), 1), item[0][0]))
    gap = 0.56 / max(len(placed) - 1, 1)
    for i, (place, t) in enumerate(placed):
        color = _COLORS[t.bound]
        axes.plot(*place, "o", color=color, markersize=6, zorder=3)
        axes.annotate(
            f"{t.op.name} ({t.bound}, {t.seconds / total:.1%})",
            place,
            xytext=(0.64, 0.07 + gap * i),
            textcoords="axes fraction",
            fontsize=8.5,
            va="center",
            color="black",
            bbox=dict(color="white", pad=1),
            arrowprops=dict(arrowstyle="-", color=color, linewidth=0.7, relpos=(0, 0.5)),
        )
    idle = [f"{t.op.name} ({t.seconds / total:.1%})" for t in timed if not _place(t)]
    if idle:
        axes.text(
            0.64,
            0.015,
            f"without arithmetic: {', '.join(idle)}",
            transform=axes.transAxes,
            fontsize=8,
            color="dimgray",
        )
