"""The tables that `search`, `memory` and `deploy` print."""

from collections.abc import Mapping, Sequence

from .deploy import NEARLY, Serving, binding, chosen
from .output import number, short, table
from .pass_tables import calibration_note, rate_notes
from .search import Limits
from .setting import Setting


def search(setting: Setting, rows: Sequence[dict], limits: Limits) -> None:
    work = setting.work
    calibrated = setting.calibrated is not None
    capped = any(r["capped"] for r in rows)
    table(
        f"{setting.title} on {setting.rates.device}, batch {work.batch}, "
        f"context {work.context_tokens}: K drafts, P proposals of M masks, best branches",
        (
            "K",
            "M",
            "P",
            "branches ",
            "rows",
            "experts",
            "tokens/pass",
            "ideal ms",
            *(["calibrated ms"] if calibrated else []),
            "tokens/s",
            "vs AR",
            "",
        ),
        [_search_line(r, r is rows[0], calibrated) for r in rows],
        [
            f"K <= {limits.drafts}, M <= {limits.mask_rows}, P <= {limits.proposals}: nothing "
            "better within these, by a bound on every layout; experts: of a layer, that the pass "
            "is expected to touch.",
            *(["At the cap: more of it may be better."] if capped else []),
            f"Acceptance: {setting.accepting.text}. Beyond K and M that it was measured with, its "
            "last value continues; a model must have been trained with proposals of M masks.",
            *rate_notes(setting),
        ],
        keys=3,
    )


def _search_line(row: dict, first: bool, calibrated: bool) -> list[str]:
    marks = [
        "best" * first,
        f"{row['capped']} at the cap" * bool(row["capped"]),
        "too large" * (not row["fits"]),
    ]
    branches = " ".join(map(str, row["branches"])) or "autoregressive"
    return [
        str(row["drafts"]),
        str(row["mask_rows"]) if row["branches"] else "-",
        str(row["proposals"]),
        branches + " (not proven best)" * (not row["exact"]),
        str(row["rows"]),
        f"{row['touched_experts']:.1f}",
        f"{row['tokens_per_pass']:.3f}",
        f"{row['ideal_pass_ms']:.3f}",
        *([f"{row['pass_ms']:.3f}"] if calibrated else []),
        short(row["tokens_per_s"]),
        f"{row['speed_up']:.2f}x",
        ", ".join(filter(None, marks)),
    ]


def memory(setting: Setting, rows: Sequence[dict], reserve: float) -> None:
    first = rows[0]
    windowed = any(r["cache_mb"] < r["cache_mb_without_windows"] for r in rows)
    table(
        f"{setting.title} on {setting.rates.device}, P = {first['proposals']}: "
        f"weights {short(first['weights_gb'])} GB of {short(first['room_gb'])} GB; "
        "MB of each request",
        (
            "context",
            "cache",
            *(["all kept"] if windowed else []),
            "states",
            "activations",
            "logits",
            "most requests",
        ),
        [
            (
                r["context_tokens"],
                short(r["cache_mb"]),
                *([short(r["cache_mb_without_windows"])] if windowed else []),
                short(r["states_mb"]),
                short(r["activations_mb"]),
                short(r["logits_mb"]),
                number(r["max_batch"], "d"),
            )
            for r in rows
        ],
        [
            f"A reserve of {reserve:.0%} of the memory is left to everything else (assumed; "
            "--reserve). Weights without norms; activations of one layer, and what `commit` reads "
            "of each.",
            *(
                [
                    "cache: windowed layers keep their window; all kept: of a cache whose pages "
                    "all layers share, such as blockdraft's own."
                ]
                if windowed
                else []
            ),
        ],
    )


def deploy(
    setting: Setting,
    found: Mapping[str, Sequence[Serving]],
    lacking: Mapping[str, str],
    limit_ms: float | None,
) -> None:
    limit = f"at most {limit_ms:g} ms a token" if limit_ms else "no limit of time per token"
    calibrated = setting.calibrated is not None
    priced = any(s.price for servings in found.values() for s in servings)
    table(
        f"{setting.title}, context {setting.work.context_tokens}, {limit}: the least batch with "
        f"{NEARLY:.0%} of the most tokens per second",
        (
            "device",
            "batch",
            "fits",
            "P",
            "ms/token",
            "tokens/s a user",
            "tokens/s a GPU",
            *(["ideal"] if calibrated else []),
            *(["$/million tokens"] if priced else []),
            "",
        ),
        [_deploy_line(name, servings, priced, calibrated) for name, servings in found.items()],
        [
            "? rests on an unconfirmed or assumed figure. fits: the most requests of this length "
            "(see `memory`)."
            + " $/million: the price over the tokens of a GPU that is always full."
            * priced,
            *(f"{name} is left out: {why}" for name, why in lacking.items()),
            f"Acceptance: {setting.accepting.text}.",
            f"Basis {setting.rates.basis} for every device; the figures and their sources: "
            "`devices --sources`.",
            calibration_note(setting),
        ],
    )


def _deploy_line(
    name: str, servings: Sequence[Serving], priced: bool, calibrated: bool
) -> list[str]:
    best = chosen(servings)
    if best is None:
        return [name, *["-"] * (6 + priced + calibrated), binding(servings)]
    doubt = " ?" * best.doubtful
    return [
        (f"{best.gpus} x " if best.gpus > 1 else "") + name + doubt,
        str(best.batch),
        number(best.max_batch, "d"),
        str(len(best.option.steady.branches)),
        f"{best.ms_per_token:.2f}",
        short(best.user_tokens_per_s),
        short(best.gpu_tokens_per_s),
        *([short(best.ideal_tokens_per_s)] if calibrated else []),
        *([number(best.dollars_per_million, ".3f")] if priced else []),
        binding(servings),
    ]
