"""The demo's pictures."""

from collections import Counter
from pathlib import Path

from ..layout import BlockLayout
from .completions import Completions
from .mix import Point
from .tables import times_of_pass


def _axes(width: float, height: float):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")


def _save(figure, folder: Path, name: str) -> Path:
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / name, dpi=110)
    plt.close(figure)
    return folder / name


def acceptance(runs: list[Completions], folder: Path) -> Path:
    """How many tokens the forwards committed."""
    figure, axes = _axes(7, 4)
    most = max(max(run.committed) for run in runs)
    for i, run in enumerate(runs):
        counts = Counter(run.committed)
        shares = [counts[n] / len(run.committed) for n in range(1, most + 1)]
        places = [n + 0.4 * (i - (len(runs) - 1) / 2) for n in range(1, most + 1)]
        axes.bar(places, shares, 0.4, label=f"{run.name}: {run.rate:.2f} on average")
    axes.set_xticks(range(1, most + 1))
    axes.set_xlabel("tokens committed by a forward")
    axes.set_ylabel("share of forwards")
    axes.legend(frameon=False)
    return _save(figure, folder, "acceptance.png")


def by_op(runs: list[Completions], folder: Path) -> Path:
    """Microseconds of a pass, and of a byte, by op."""
    figure, axes = _axes(9, 3.6)
    columns = [times_of_pass(run) for run in runs]
    tokens = [run.emitted / run.passes for run in runs]
    names = sorted(columns[-1], key=lambda op: -columns[-1][op])
    bars = [(f"{run.name}\na pass", us, 1.0) for run, us in zip(runs, columns)]
    bars += [(f"{run.name}\na byte", us, n) for run, us, n in zip(runs, columns, tokens)]
    left = [0.0] * len(bars)
    for name in names:
        widths = [us.get(name, 0.0) / n for _, us, n in bars]
        axes.barh([label for label, _, _ in bars], widths, left=left, label=name)
        left = [a + b for a, b in zip(left, widths)]
    axes.invert_yaxis()
    axes.set_xlabel("microseconds")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return _save(figure, folder, "by_op.png")


def mix(points: list[Point], layout: BlockLayout, folder: Path) -> Path:
    """Quality against tokens of a forward, a point for each weight."""
    figure, axes = _axes(6.5, 4.2)
    axes.plot([p.rate for p in points], [p.nats for p in points], "o-")
    for point in points:
        label = f"  {point.weight:g}: {point.speed:.2f}x"
        axes.annotate(label, (point.rate, point.nats), fontsize=9, va="top")
    axes.set_xlabel("tokens committed by a forward")
    axes.set_ylabel("nats a byte under the autoregressive model")
    axes.set_title(
        f"the target's weight: speed against lossless (K = {layout.K}, P = {layout.P})", fontsize=10
    )
    axes.margins(x=0.15)
    return _save(figure, folder, "mix.png")
