"""What all plots share: the subject that they show, and the files that they are saved as."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .devices import BASIS_TEXT, Ceilings
from .plan import Steady
from .workload import Workload

# The colour of a device, the same in every plot
_COLORS = {
    "MI300X": "#d1242f",
    "MI325X": "#e16f24",
    "MI350X": "#bf8700",
    "MI355X": "#8250df",
    "H100": "#1a7f37",
    "H200": "#0a8f8f",
    "B200": "#0969da",
    "cpu": "#57606a",
}
_OTHERS = ("#953800", "#6e7781", "#a475f9", "#4d2d00")


def device_color(name: str) -> str:
    """A device of one's own has one of the further colours, by its name."""
    return _COLORS.get(name) or _OTHERS[sum(map(ord, name)) % len(_OTHERS)]


@dataclass(frozen=True)
class Subject:
    """What is drawn: a model by its title, a workload without branches, the rates that the times
    rest on, microseconds for each launch, the branches of the pass with proposals, and calibrated
    rates where there are any."""

    model: str
    work: Workload
    rates: Ceilings
    launch_us: float
    steady: Steady
    calibrated: Ceilings | None = None

    @property
    def where(self) -> str:
        return f"{self.model}, {self.work.dtype}, {self.rates.device}"

    @property
    def accepting(self) -> str:
        return f"{self.steady.tokens_per_pass:.2f} tokens a pass"

    @property
    def proposals(self) -> int:
        return len(self.steady.branches)

    def basis(self, unconfirmed: Sequence[str] = ()) -> str:
        """What the times rest on, for the further lines of a title."""
        launches = f"{self.launch_us:g} us a launch" if self.launch_us else "launches not counted"
        doubt = f"\nunconfirmed: {', '.join(unconfirmed)}" if unconfirmed else ""
        return f"ideal times; {BASIS_TEXT[self.rates.basis]}; {launches}{doubt}"


def save(
    name: str, folder: Path, draw: Callable, size: tuple[float, float], columns: int = 1
) -> list[Path]:
    """Draw on a fresh row of axes and write NAME.png and NAME.svg."""
    try:
        import matplotlib
    except ImportError as error:
        raise ValueError(
            f"plot: needs matplotlib: pip install 'blockdraft[bench]' ({error})"
        ) from error

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(
        1, columns, figsize=size, layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    draw(figure, *axes[0])
    paths = [folder / f"{name}.{kind}" for kind in ("png", "svg")]
    for path in paths:
        figure.savefig(path, dpi=130)
    plt.close(figure)
    return paths


def legend(figure, axes, title: str) -> None:
    """Beside the axes."""
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside right upper",
        fontsize=9,
        title=title,
        title_fontsize=8,
    )


def token_label(tokens: int) -> str:
    """A number of cached tokens, for an axis."""
    return f"{tokens // 1024}k" if tokens >= 1024 else str(tokens)
