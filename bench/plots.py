"""Plots of a result file: speed relative to the best peer, and the rows under the machine's
roofline."""

from pathlib import Path


def plot(data: dict, folder: Path) -> list[Path]:
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    timed = [row for row in data["rows"] if row["ms"]]
    return [
        _ratios(timed, data, folder / "ratios.png"),
        _roofline(timed, data, folder / "roofline.png"),
    ]


def _name(row) -> str:
    return f"{row['op']} {row['case']} {row['dtype']}"


def _ratios(rows, data, path: Path) -> Path:
    """One group a case: each implementation's speed as a share of the best peer's."""
    import matplotlib.pyplot as plt

    groups = {}
    for row in rows:
        groups.setdefault(_name(row), []).append(row)
    height = sum(len(g) + 1.6 for g in groups.values())
    figure, axes = plt.subplots(figsize=(10, 0.24 * height + 1.2), layout="constrained")
    y, ticks, labels = 0.0, [], []
    for name, group in groups.items():
        axes.text(0, y, name, fontsize=9, fontweight="bold", va="center")
        y += 1
        for row in sorted(group, key=lambda r: r["ms"]):
            ratio = row["vs_best_peer"] or 0
            axes.barh(y, ratio, color="tab:gray" if row["is_peer"] else "tab:orange")
            axes.text(
                ratio,
                y,
                f" {ratio:.2f}  ({row['ms']:.4g} ms)",
                fontsize=8,
                va="center",
                bbox=dict(facecolor="white", edgecolor="none", pad=0.6),
            )
            ticks.append(y)
            labels.append(row["impl"])
            y += 1
        y += 0.6
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(ticks, labels, fontsize=8)
    axes.set_ylim(y - 0.4, -0.8)
    axes.set_xlim(0, 1.35 * max((row["vs_best_peer"] or 0 for row in rows), default=1))
    axes.set_xlabel("speed relative to the best peer (1 = as fast)")
    axes.set_title(
        f"orange: blockdraft, grey: peers — {data['machine'].get('device', '')}", fontsize=10
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _roofline(rows, data, path: Path) -> Path:
    """Achieved flop rate against arithmetic intensity, fastest implementation of each case."""
    import matplotlib.pyplot as plt
    import numpy as np

    limits = data["limits"]
    best = {}
    for row in rows:
        if row["flops"] and (_name(row) not in best or row["ms"] < best[_name(row)]["ms"]):
            best[_name(row)] = row
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    intensity = [row["flops"] / row["bytes"] for row in best.values()]
    x = np.geomspace(
        min(intensity, default=1) / 4,
        max(intensity + [10 * limits["flops_per_s"] / limits["read_bytes_per_s"]]),
        200,
    )
    roofs = {
        "roofline of bf16 products": (limits["bf16_flops_per_s"], "--"),
        "roofline": (limits["flops_per_s"], "-"),
    }
    for label, (rate, line) in roofs.items():
        if label == "roofline" or rate != limits["flops_per_s"]:
            axes.plot(
                x,
                np.minimum(rate, x * limits["read_bytes_per_s"]) / 1e9,
                line,
                color="black",
                label=label,
            )
    for (name, row), at in zip(best.items(), intensity):
        axes.plot(at, row["flops"] / row["ms"] / 1e6, "o", label=f"{name}: {row['impl']}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("arithmetic intensity, flop per byte of main memory")
    axes.set_ylabel("Gflop/s")
    axes.set_title(f"fastest implementation of each case, {limits['threads']} threads", fontsize=10)
    axes.legend(fontsize=7, loc="lower right")
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
