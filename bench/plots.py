"""Plots of a result file: speed relative to the best peer, and the cases under the machine's
roofline."""

from pathlib import Path

from .results import case_name


def plot(data: dict, folder: Path) -> list[Path]:
    """Draws both plots and returns their files."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    timed = [result for result in data["results"] if result["ms"]]
    return [
        _ratios(timed, data, folder / "ratios.png"),
        _roofline(timed, data, folder / "roofline.png"),
    ]


def _ratios(timed: list[dict], data: dict, path: Path) -> Path:
    """A group of bars for each case: the speed of each implementation relative to the best peer."""
    import matplotlib.pyplot as plt

    groups: dict[str, list[dict]] = {}
    for result in timed:
        groups.setdefault(case_name(result), []).append(result)
    height = sum(len(group) + 1.6 for group in groups.values())
    figure, axes = plt.subplots(figsize=(10, 0.24 * height + 1.2), layout="constrained")
    ticks, labels = [], []
    y = 0.0
    for name, group in groups.items():
        axes.text(0, y, name, fontsize=9, fontweight="bold", va="center")
        y += 1
        for result in sorted(group, key=lambda result: result["ms"]):
            _bar(axes, y, result)
            ticks.append(y)
            labels.append(result["impl"])
            y += 1
        y += 0.6
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(ticks, labels, fontsize=8)
    axes.set_ylim(y - 0.4, -0.8)
    axes.set_xlim(0, 1.35 * max((result["vs_best_peer"] or 0 for result in timed), default=1))
    axes.set_xlabel("speed relative to the best peer (1 = as fast)")
    device = data["machine"].get("device", "")
    axes.set_title(f"orange: blockdraft, grey: peers — {device}", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _bar(axes, y: float, result: dict) -> None:
    ratio = result["vs_best_peer"] or 0
    axes.barh(y, ratio, color="tab:gray" if result["is_peer"] else "tab:orange")
    axes.text(
        ratio,
        y,
        f" {ratio:.2f}  ({result['ms']:.4g} ms)",
        fontsize=8,
        va="center",
        bbox=dict(facecolor="white", edgecolor="none", pad=0.6),
    )


def _roofline(timed: list[dict], data: dict, path: Path) -> Path:
    """The flop rate of the fastest implementation of each case against arithmetic intensity."""
    import matplotlib.pyplot as plt

    best: dict[str, dict] = {}
    for result in timed:
        name = case_name(result)
        if result["flops"] and (name not in best or result["ms"] < best[name]["ms"]):
            best[name] = result
    intensity = [result["flops"] / result["bytes"] for result in best.values()]
    # The legend is beside the axes and has a line for each case.
    height = max(5.5, 0.19 * len(best) + 1.5)
    figure, axes = plt.subplots(figsize=(12, height), layout="constrained")
    _roofs(axes, data["limits"], intensity)
    for (name, result), at in zip(best.items(), intensity):
        rate = result["flops"] / result["ms"] / 1e6
        axes.plot(at, rate, "o", label=f"{name}: {result['impl']}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("arithmetic intensity, flop per byte of main memory")
    axes.set_ylabel("Gflop/s")
    threads = data["limits"]["threads"]
    axes.set_title(f"fastest implementation of each case, {threads} threads", fontsize=10)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _roofs(axes, limits: dict, intensity: list[float]) -> None:
    import numpy as np

    ridge = limits["flops_per_s"] / limits["read_bytes_per_s"]
    x = np.geomspace(min(intensity, default=1) / 4, max([*intensity, 10 * ridge]), 200)
    memory = x * limits["read_bytes_per_s"]
    roofs = [("roofline", limits["flops_per_s"], "-")]
    if limits["bf16_flops_per_s"] != limits["flops_per_s"]:
        roofs.append(("roofline of bf16 products", limits["bf16_flops_per_s"], "--"))
    for label, rate, line in roofs:
        axes.plot(x, np.minimum(rate, memory) / 1e9, line, color="black", label=label)
