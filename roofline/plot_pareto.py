"""Tokens per second of a user against those of a GPU."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from .canvas import device_color, legend, save
from .deploy import Serving, chosen
from .setting import Setting


def draw(
    setting: Setting,
    found: Mapping[str, Sequence[Serving]],
    limit_ms: float | None,
    folder: Path,
) -> list[Path]:
    """A curve for each device over its batches; filled points are on the front, and the ring marks
    the batch that `deploy` chooses."""
    title = (
        f"{setting.title}, {setting.work.dtype}, context {setting.work.context_tokens}, "
        f"{'calibrated' if setting.calibrated else 'ideal'} times, basis {setting.rates.basis}"
    )

    def curves(figure, axes) -> None:
        for name, servings in found.items():
            _curve(axes, name, servings)
        if limit_ms:
            axes.axvline(1e3 / limit_ms, color="gray", linestyle=":", linewidth=1)
            axes.annotate(
                f"{limit_ms:g} ms a token",
                (1e3 / limit_ms, 0.02),
                xycoords=("data", "axes fraction"),
                xytext=(4, 0),
                textcoords="offset points",
                fontsize=8,
                color="dimgray",
            )
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="tokens per second of a user",
            ylabel="tokens per second of a GPU",
        )
        axes.set_title(title, fontsize=11)
        axes.grid(alpha=0.3, which="both")
        legend(figure, axes, "? assumed figures\nnumbers: requests")

    return save("pareto", folder, curves, (9.5, 6))


def _curve(axes, name: str, servings: Sequence[Serving]) -> None:
    if not servings:
        return
    color = device_color(name)
    best = chosen(servings)
    label = name + " ?" * servings[0].doubtful
    points = [(s.user_tokens_per_s, s.gpu_tokens_per_s) for s in servings]
    axes.plot(*zip(*points, strict=True), "-", color=color, linewidth=1.2, label=label)
    for serving, point in zip(servings, points, strict=True):
        face = color if serving.on_front else "white"
        axes.plot(*point, "o", color=color, markerfacecolor=face, markersize=4)
    if best is not None:
        point = best.user_tokens_per_s, best.gpu_tokens_per_s
        axes.plot(*point, "o", color=color, markerfacecolor="none", markersize=11)
        axes.annotate(
            str(best.batch),
            point,
            xytext=(8, 6),
            textcoords="offset points",
            fontsize=8,
            color=color,
        )
