"""The roofline with every op, proposals against context, and a heat map of the best P; each as PNG and SVG."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from .blocks import affordable
from .devices import BASIS_TEXT, Ceilings
from .step import Workload, pass_ops, time_ops


def save(name: str, folder: Path, draw: Callable, size: tuple[float, float]) -> list[Path]:
    """Draw on fresh axes and write NAME.png and NAME.svg."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    draw(figure, axes)
    paths = [folder / f"{name}.{kind}" for kind in ("png", "svg")]
    for path in paths:
        figure.savefig(path, dpi=130)
    plt.close(figure)
    return paths


def roofline(quoted: Ceilings, used: Ceilings, passes: dict[str, Workload], launch_us: float, title: str, folder: Path) -> list[Path]:
    """Each op of up to two passes at its intensity (products and other arithmetic over bytes of main memory) and predicted
    rate, under the quoted roof and, where it differs, the one that the times rest on."""
    def draw(figure, axes):
        import numpy as np
        from matplotlib import colormaps

        timed = {mode: {t.op.name: t for t in time_ops(pass_ops(w), used, launch_us)} for mode, w in passes.items()}
        names = list(dict.fromkeys(name for ops in timed.values() for name in ops))
        points, idle = [], []
        for i, name in enumerate(names):
            label = name
            for mode, marker in zip(timed, ("o", "s")):
                t = timed[mode].get(name)
                flops = t.op.cost.flops + t.op.cost.vector_flops if t else 0
                if not flops:
                    idle += [name] if t and name not in idle else []
                    continue
                x, y = flops / t.op.cost.bytes, flops / t.seconds / 1e12
                filled = mode == list(timed)[-1]
                axes.plot(x, y, marker, color=colormaps["tab20"](i), markersize=8, label=label, zorder=3,
                          markerfacecolor=colormaps["tab20"](i) if filled else "white", markeredgewidth=1.8)
                points.append((x, y))
                label = "_nolegend_"
        x = np.geomspace(min(p[0] for p in points) / 3, max(4 * quoted.ridge_flops_per_byte, *(2 * p[0] for p in points)), 400)
        for rates, style, text in ((quoted, "-", "quoted peaks"), (used, "--", used.basis)):
            if rates is used and used.basis == "peak":
                continue
            axes.plot(x, np.minimum(rates.matrix_flops_per_s, x * rates.memory_bytes_per_s) / 1e12, style, color="black", linewidth=1.2,
                      label=f"{text}: {rates.matrix_flops_per_s / 1e12:.0f} TFLOP/s,\n{rates.memory_bytes_per_s / 1e12:.2f} TB/s")
        axes.axhline(used.vector_flops_per_s / 1e12, color="gray", linewidth=1, linestyle=":",
                     label=f"vector fp32: {used.vector_flops_per_s / 1e12:.0f} TFLOP/s (quoted)" if used.device != "cpu" else "fp32")
        for mode, marker in zip(timed, ("o", "s")):
            axes.plot([], [], marker, color="black", markerfacecolor="white" if marker == "o" and len(timed) > 1 else "black", label=mode)
        axes.set(xscale="log", yscale="log", xlabel="FLOP per byte of main memory", ylabel=f"TFLOP/s ({used.dtype})", title=title,
                 ylim=(min(p[1] for p in points) / 3, 2 * quoted.matrix_flops_per_s / 1e12))
        axes.grid(alpha=0.25, which="both")
        note = f"No arithmetic: {', '.join(idle)}" if idle else None
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8, title=note, title_fontsize=8)
    return save("roofline", folder, draw, (10.5, 5.8))


def blocks_against_context(devices: Iterable[Ceilings], work: Workload, slack: float, launch_us: float, title: str, folder: Path) -> list[Path]:
    """Proposals that add at most `slack` to the pass that only verifies."""
    contexts = [512 * 2**i for i in range(20) if 512 * 2**i <= work.model.max_position_embeddings]

    def draw(figure, axes):
        for rates, marker in zip(devices, "osD^vPX*h<>"):
            values = [affordable(replace(work, context_tokens=n), rates, slack, launch_us) for n in contexts]
            axes.plot(contexts, values, marker=marker, markersize=5, label=f"{rates.device}{' ?' if _doubtful(rates) else ''}")
        axes.set_xscale("log", base=2)
        axes.set_xticks(contexts, [f"{n // 1024}k" if n >= 1024 else str(n) for n in contexts])
        axes.set(xlabel="cached tokens of each request", ylabel=f"proposals for at most {slack:.0%} more time", title=title)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=9, title="? unconfirmed figures", title_fontsize=8)
    return save("blocks", folder, draw, (9.5, 5))


def _doubtful(rates: Ceilings) -> bool:
    return "memory_tb_per_s" in rates.unconfirmed or f"{rates.dtype}_tflops" in rates.unconfirmed


def heat_map(rows: list[dict], title: str, folder: Path) -> list[Path]:
    """`sweep.run` rows: speed-up over autoregressive decoding by colour, with the best P written in each cell."""
    best = {(r["batch"], r["context_tokens"]): r for r in rows if r["best"]}
    batches, contexts = (sorted({key[i] for key in best}) for i in (0, 1))

    def draw(figure, axes):
        from matplotlib import colormaps

        values = [[best[b, n]["speed_up"] for n in contexts] for b in batches]
        top = max(map(max, values))
        image = axes.imshow(values, origin="lower", aspect="auto", cmap="viridis", vmin=1, vmax=max(top, 1.01))
        for y, b in enumerate(batches):
            for x, n in enumerate(contexts):
                row = best[b, n]
                shade = colormaps["viridis"]((row["speed_up"] - 1) / max(top - 1, 0.01))
                dark = 0.3 * shade[0] + 0.6 * shade[1] + 0.1 * shade[2] < 0.5
                text = f"P = {row['proposals']}\n{row['speed_up']:.2f}x" + ("" if row["fits"] else "\ntoo large")
                axes.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
        axes.set_xticks(range(len(contexts)), [f"{n // 1024}k" if n >= 1024 else str(n) for n in contexts])
        axes.set_yticks(range(len(batches)), batches)
        axes.set(xlabel="cached tokens of each request", ylabel="requests in the batch", title=title)
        figure.colorbar(image, label="speed-up over autoregressive decoding, best P")
    return save("heatmap", folder, draw, (9.5, 5.5))


def subtitle(rates: Ceilings) -> str:
    return f"lower bounds; {BASIS_TEXT[rates.basis]}"
