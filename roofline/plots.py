"""The roofline with every op, proposals against context, and a heat map of the best P; each as PNG
and SVG."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from math import log10
from pathlib import Path

from .blocks import affordable
from .devices import BASIS_TEXT, Ceilings
from .output import short
from .step import OpTime, Workload, pass_ops, time_ops


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


def roofline(
    quoted: Ceilings,
    used: Ceilings,
    passes: dict[str, Workload],
    launch_us: float,
    title: str,
    folder: Path,
) -> list[Path]:
    """A panel for each pass: every op at its intensity (products and other arithmetic over bytes of
    main memory) and predicted rate, under the quoted roof and, where it differs, the one that the
    times rest on."""
    timed = {mode: time_ops(pass_ops(work), used, launch_us) for mode, work in passes.items()}
    lowest = min(rate for ops in timed.values() for _, rate in filter(None, map(_place, ops)))
    peak = quoted.matrix_flops_per_s / 1e12

    def draw(figure, *panels):
        for axes, (mode, work) in zip(panels, passes.items()):
            _roofs(axes, quoted, used)
            _points(axes, timed[mode])
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
        figure.suptitle(title, fontsize=11)

    return save("roofline", folder, draw, (13, 6.2), len(passes))


def _roofs(axes, quoted: Ceilings, used: Ceilings) -> None:
    x = [0.01, quoted.ridge_flops_per_byte, used.ridge_flops_per_byte, 1e6]
    roofs = [(quoted, "-", "quoted peaks" if quoted is not used else "measured")]
    if used is not quoted and used.basis != "peak":
        roofs.append((used, "--", used.basis))
    for rates, style, text in roofs:
        y = [
            min(rates.matrix_flops_per_s, at * rates.memory_bytes_per_s) / 1e12 for at in sorted(x)
        ]
        axes.plot(
            sorted(x),
            y,
            style,
            color="black",
            linewidth=1.2,
            label=f"{text}: "
            f"{short(rates.matrix_flops_per_s / 1e12)} TFLOP/s, {short(rates.memory_bytes_per_s / 1e12)} TB/s",
        )
    axes.axhline(
        used.vector_flops_per_s / 1e12,
        color="gray",
        linewidth=1,
        linestyle=":",
        label=f"fp32 vector arithmetic: {short(used.vector_flops_per_s / 1e12)} TFLOP/s",
    )


def _place(timed: OpTime) -> tuple[float, float] | None:
    """Intensity in FLOP per byte and rate in TFLOP/s; None without arithmetic."""
    flops = timed.op.cost.flops + timed.op.cost.vector_flops
    return (flops / timed.op.cost.bytes, flops / timed.seconds / 1e12) if flops else None


def _points(axes, timed) -> None:
    """Ops share intensities, so that names stand in a column, in the order of the points from
    below, with lines to them."""
    placed = [(*_place(t), f"{t.op.name} ({t.bound})", t.bound) for t in timed if _place(t)]
    idle = [t.op.name for t in timed if not _place(t)]
    colors = {
        bound: color
        for bound, color in zip(
            ("memory", "matrix", "arithmetic", "vector", "L2", "launch"),
            ("tab:blue", "tab:orange", "tab:orange", "tab:green", "tab:purple", "tab:red"),
        )
    }
    for i, (x, y, name, bound) in enumerate(
        sorted(placed, key=lambda p: (round(log10(p[1]), 1), p[0]))
    ):
        axes.plot(x, y, "o", color=colors[bound], markersize=6, zorder=3)
        axes.annotate(
            name,
            (x, y),
            xytext=(0.67, 0.07 + 0.56 * i / max(len(placed) - 1, 1)),
            textcoords="axes fraction",
            fontsize=8.5,
            va="center",
            color="black",
            bbox=dict(color="white", pad=1),
            arrowprops=dict(arrowstyle="-", color=colors[bound], linewidth=0.7, relpos=(0, 0.5)),
        )
    if idle:
        axes.text(
            0.67,
            0.015,
            f"without arithmetic: {', '.join(idle)}",
            transform=axes.transAxes,
            fontsize=8,
            color="dimgray",
        )


def blocks_against_context(
    devices: Iterable[Ceilings],
    work: Workload,
    slack: float,
    launch_us: float,
    title: str,
    folder: Path,
) -> list[Path]:
    """Proposals that add at most `slack` to the pass that only verifies."""
    contexts = [512 * 2**i for i in range(20) if 512 * 2**i <= work.model.max_position_embeddings]

    def draw(figure, axes):
        for rates, marker in zip(devices, "osD^vPX*h<>"):
            values = [
                affordable(replace(work, context_tokens=n), rates, slack, launch_us)
                for n in contexts
            ]
            axes.plot(
                contexts,
                values,
                marker=marker,
                markersize=5,
                label=f"{rates.device}{' ?' * bool(rates.doubtful)}",
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(contexts, [f"{n // 1024}k" if n >= 1024 else str(n) for n in contexts])
        axes.set(
            xlabel="cached tokens of each request",
            ylabel=f"proposals for at most {slack:.0%} more time",
        )
        axes.set_title(title, fontsize=11)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        figure.legend(
            *axes.get_legend_handles_labels(),
            loc="outside right upper",
            fontsize=9,
            title="? unconfirmed figures",
            title_fontsize=8,
        )

    return save("blocks", folder, draw, (9.5, 5))


def heat_map(rows: list[dict], title: str, folder: Path) -> list[Path]:
    """`sweep.run` rows: speed-up over autoregressive decoding by colour, with the best P written in
    each cell."""
    best = {(r["batch"], r["context_tokens"]): r for r in rows if r["best"]}
    batches, contexts = (sorted({key[i] for key in best}) for i in (0, 1))

    def draw(figure, axes):
        from matplotlib import colormaps

        values = [[best[b, n]["speed_up"] for n in contexts] for b in batches]
        top = max(map(max, values))
        image = axes.imshow(
            values, origin="lower", aspect="auto", cmap="viridis", vmin=1, vmax=max(top, 1.01)
        )
        for y, b in enumerate(batches):
            for x, n in enumerate(contexts):
                row = best[b, n]
                shade = colormaps["viridis"]((row["speed_up"] - 1) / max(top - 1, 0.01))
                dark = 0.3 * shade[0] + 0.6 * shade[1] + 0.1 * shade[2] < 0.5
                text = f"P = {row['proposals']}\n{row['speed_up']:.2f}x" + (
                    "" if row["fits"] else "\ntoo large"
                )
                axes.text(
                    x,
                    y,
                    text,
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if dark else "black",
                )
        axes.set_xticks(
            range(len(contexts)), [f"{n // 1024}k" if n >= 1024 else str(n) for n in contexts]
        )
        axes.set_yticks(range(len(batches)), batches)
        axes.set(xlabel="cached tokens of each request", ylabel="requests in the batch")
        axes.set_title(title, fontsize=11)
        figure.colorbar(image, label="speed-up over autoregressive decoding, best P")

    return save("heatmap", folder, draw, (9.5, 5.5))


def subtitle(basis: str, launch_us: float, unconfirmed: Iterable[str] = ()) -> str:
    """What the times rest on, for a title's further lines."""
    doubt = f"\nunconfirmed: {', '.join(unconfirmed)}" if unconfirmed else ""
    return f"ideal times; {BASIS_TEXT[basis]}; {f'{launch_us:g} us a launch' if launch_us else 'launches not counted'}{doubt}"
