"""All plots of `blockdraft roofline plot`, and its page: the roofline with every op, proposals
against context, and a heat map of the best P; each as PNG and SVG."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from . import page, sweep
from .blocks import affordable
from .canvas import Subject, device_color, legend, save, token_label
from .devices import Ceilings, ceilings
from .figures import Device
from .plan import Accepting
from .plot_roofline import roofline

_MARKERS = "osD^vPX*h<>"


def draw_all(
    subject: Subject,
    device: Device,
    known: Sequence[Device],
    acceptance: Accepting,
    slack: float,
    folder: Path,
) -> list[Path]:
    """device: of the subject. known: those that are compared."""
    work = subject.work
    rates = subject.rates
    quoted = rates if device.name == "cpu" else ceilings(device, work.dtype, "peak")
    paths = roofline(subject, quoted, folder)
    paths += blocks_against_context(subject, known, slack, folder)
    contexts = page.contexts_of(work.model)
    rows = sweep.run(
        work,
        acceptance,
        rates,
        page.BATCHES,
        contexts,
        page.MAX_PROPOSALS,
        subject.launch_us,
        subject.calibrated,
    )
    paths += heat_map(subject, rows, folder)
    shown = list(known)
    if device not in shown:
        shown.append(device)
    start = {
        "device": device.name,
        "basis": rates.basis,
        "batch": work.batch,
        "context": work.context_tokens,
        "mean": page.GIVEN,
        "proposals": min(subject.proposals, page.MAX_PROPOSALS),
    }
    calibration = subject.calibrated and subject.calibrated.calibration
    content = page.data(
        subject.model, work, shown, subject.launch_us, acceptance, start, calibration
    )
    paths.append(page.write(folder / "blocks.html", content))
    return paths


def _able(devices: Sequence[Device], dtype: str, basis: str) -> list[Ceilings]:
    """Of the devices whose rates are known."""
    found = []
    for device in devices:
        try:
            found.append(ceilings(device, dtype, basis))
        except ValueError:
            continue
    return found


def blocks_against_context(
    subject: Subject, devices: Sequence[Device], slack: float, folder: Path
) -> list[Path]:
    """Proposals that add at most `slack` to the pass that only verifies."""
    work = subject.work
    longest = work.model.max_position_embeddings
    contexts = [512 * 2**i for i in range(20) if 512 * 2**i <= longest]
    compared = _able(devices, work.dtype, subject.rates.basis)
    calibration = subject.calibrated and subject.calibrated.calibration

    def affordable_at(rates: Ceilings, context: int) -> float:
        return affordable(replace(work, context_tokens=context), rates, slack, subject.launch_us)

    def draw(figure, axes) -> None:
        # devices beyond the markers are left out
        for rates, marker in zip(compared, _MARKERS, strict=False):
            values = [affordable_at(rates, n) for n in contexts]
            label = f"{rates.device}{' ?' * bool(rates.doubtful)}"
            color = device_color(rates.device)
            axes.plot(contexts, values, marker=marker, markersize=5, label=label, color=color)
            if calibration:
                rates = replace(rates, calibration=calibration)
                axes.plot(contexts, [affordable_at(rates, n) for n in contexts], "--", color=color)
        axes.set_xscale("log", base=2)
        axes.set_xticks(contexts, map(token_label, contexts))
        axes.set(
            xlabel="cached tokens of each request",
            ylabel=f"proposals for at most {slack:.0%} more time",
        )
        title = f"{subject.model}, {work.dtype}, batch {work.batch}\n{subject.basis()}"
        axes.set_title(title, fontsize=11)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        legend(figure, axes, "? unconfirmed figures" + "\ndashed: calibrated" * bool(calibration))

    return save("blocks", folder, draw, (9.5, 5))


def heat_map(subject: Subject, rows: list[dict], folder: Path) -> list[Path]:
    """`sweep.run` rows: speed-up over autoregressive decoding by colour, with the best P written in
    each cell."""
    best = {(r["batch"], r["context_tokens"]): r for r in rows if r["best"]}
    measured = {(r["batch"], r["context_tokens"]): r for r in rows if r.get("calibrated_best")}
    batches = sorted({batch for batch, _ in best})
    contexts = sorted({context for _, context in best})
    # a cell that does not fit has no colour
    values = [
        [best[b, n]["speed_up"] if best[b, n]["fits"] else math.nan for n in contexts]
        for b in batches
    ]
    top = max((v for row in values for v in row if v == v), default=1.0)

    def draw(figure, axes) -> None:
        image = axes.imshow(
            values, origin="lower", aspect="auto", cmap="viridis", vmin=1, vmax=max(top, 1.01)
        )
        for y, b in enumerate(batches):
            for x, n in enumerate(contexts):
                row = best[b, n]
                share = (row["speed_up"] - 1) / max(top - 1, 0.01)
                color = _readable(share) if row["fits"] else "dimgray"
                text = _cell(row) + _calibrated(measured.get((b, n)))
                axes.text(x, y, text, ha="center", va="center", fontsize=8, color=color)
        axes.set_xticks(range(len(contexts)), map(token_label, contexts))
        axes.set_yticks(range(len(batches)), batches)
        axes.set(xlabel="cached tokens of each request", ylabel="requests in the batch")
        title = f"{subject.where}, {subject.accepting} with P = {subject.proposals}"
        title += "; [P: speed-up] as calibrated" * bool(measured)
        axes.set_title(f"{title}\n{subject.basis(subject.rates.unconfirmed)}", fontsize=11)
        figure.colorbar(image, label="speed-up over autoregressive decoding, best P")

    return save("heatmap", folder, draw, (9.5, 5.5))


def _cell(row: dict) -> str:
    size = "" if row["fits"] else "\ntoo large"
    return f"P = {row['proposals']}\n{row['speed_up']:.2f}x{size}"


def _calibrated(row: dict | None) -> str:
    return f"\n[{row['proposals']}: {row['calibrated_speed_up']:.2f}x]" if row else ""


def _readable(value: float) -> str:
    """The colour of text on the map's colour for a value in 0..1."""
    from matplotlib import colormaps

    red, green, blue, _ = colormaps["viridis"](value)
    return "white" if 0.3 * red + 0.6 * green + 0.1 * blue < 0.5 else "black"
