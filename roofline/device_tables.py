"""The tables that `devices`, `blocks` and `attention` print of their rows."""

from collections.abc import Sequence

from .budget import LATENCY_S
from .calibration import Calibration
from .devices import BASIS_TEXT, Ceilings
from .figures import KINDS
from .output import number, table
from .pass_tables import calibrated_by


def sources(rows: Sequence[dict]) -> None:
    """Every figure, with its source by number."""
    texts = list(dict.fromkeys(map(_source, rows)))
    table(
        "Figures, dense",
        ("device", "figure ", "kind ", "value", "confidence ", "source"),
        [
            (
                r["device"],
                r["figure"],
                r["kind"],
                f"{r['value']:.5g}",
                r["confidence"],
                texts.index(_source(r)) + 1,
            )
            for r in rows
        ],
        [
            "Of several figures of a kind the first is used. "
            "Sources, with the date of publication or reading:",
            *(f"{i:3} {text}" for i, text in enumerate(texts, 1)),
            *(
                f"{r['device']} {r['figure']} {r['value']:.5g}: {r['note']}"
                for r in rows
                if r["note"]
            ),
        ],
        keys=3,
    )


def _source(row: dict) -> str:
    """With the url on a line of its own, so that it breaks in no terminal."""
    url = f"\n    {row['url']}" if row["url"] else ""
    return f"{row['source']} ({row['date']}){url}"


def figures(rows: Sequence[dict]) -> None:
    """The figures in use, a column for each device."""
    used = {(r["device"], r["figure"], r["kind"]): r for r in rows if r["used"]}
    names = list(dict.fromkeys(r["device"] for r in rows))
    quoted_first = sorted(rows, key=lambda r: KINDS.index(r["kind"]))
    lines = dict.fromkeys((r["figure"], r["kind"]) for r in quoted_first)
    table(
        "Dense figures, without sparsity",
        ("figure", "kind ", *names),
        [
            (figure, kind, *(_figure(used.get((name, figure, kind))) for name in names))
            for figure, kind in lines
        ],
        [
            "? unconfirmed. quoted: by the vendor; achieved: measured by somebody; assumed: nobody "
            "measured it, another device's share or a rule stands in. "
            "`devices --sources` names source and date of each.",
        ],
    )


def _figure(row: dict | None) -> str:
    if row is None:
        return "-"
    return f"{row['value']:.5g}" + "?" * (row["confidence"] == "unconfirmed")


def readings(title: str, rows: Sequence[dict], names: Sequence[str], notes: Sequence[str]) -> None:
    """Free blocks by reading and device."""
    by = {(r["reading"], r["device"]): r for r in rows}
    found = dict.fromkeys(r["reading"] for r in rows)
    table(
        f"{title}: blocks t (proposals t - 1) that reading a long prefix pays for; "
        "16-row blocks, bf16",
        ("FLOP/s / bandwidth", *names),
        [(reading, *(_t(by[reading, name]) for name in names)) for reading in found],
        [
            "t = FLOP/s / bandwidth / FLOP per byte of one block's attention. "
            "- no such figure known. ? rests on an unconfirmed figure.",
            *notes,
        ],
    )


def _t(row: dict) -> str:
    if row["t"] is None:
        return "-"
    ideal = f"{row['t']:.2f} ({row['proposals']:.2f})" + "?" * bool(row["unconfirmed"])
    found = row["calibrated_t"]
    return ideal if found is None else f"{ideal} | {found:.2f} ({found - 1:.2f})"


def whole_passes(
    rows: Sequence[dict], names: Sequence[str], calibration: Calibration | None = None
) -> None:
    """Affordable proposals by basis and device."""
    bases = dict.fromkeys(r["basis"] for r in rows)
    cells = {(r["basis"], r["device"]): _proposals(r) for r in rows}
    r = rows[0]
    table(
        f"\nWhole pass at batch {r['batch']}, context {r['context_tokens']}: "
        f"proposals that add at most {r['slack']:.0%} to the pass that only verifies",
        (f"{r['block_rows']}-row blocks, {r['dtype']}", *names),
        [(basis, *(cells[basis, name] for name in names)) for basis in bases],
        [
            "Three counts, one after the other: attention over a long prefix affords the blocks of "
            "the first table; at this batch and context the other ops leave these proposals; "
            "`plan` then says how many of them the acceptance repays, which may be fewer or more.",
            *(["Ideal | calibrated, in both tables."] if calibration else []),
            *_calibrated(calibration, names),
            "Bases are explained by `step --help`; "
            "the figures behind them and their sources by `devices --sources`.",
        ],
    )


def _proposals(row: dict) -> str:
    doubt = "?" * bool(row["unconfirmed"])
    ideal = number(row["proposals"], ".1f") + doubt
    found = row["calibrated_proposals"]
    return ideal if found is None else f"{ideal} | {found:.1f}"


def _calibrated(found: Calibration | None, names: Sequence[str]) -> list[str]:
    return [] if found is None else [calibrated_by(found, names)]


def attention(title: str, rows: Sequence[dict], rates: Ceilings) -> None:
    cache = rows[0]["cache_bytes_per_token"]
    query_rows = rows[0]["query_rows"]
    ridge = rates.ridge_flops_per_byte
    table(
        f"{title}: one block's attention, {query_rows} rows, "
        f"with {cache:.0f} bytes of bf16 cache a token, on {rates.device}",
        (
            "kind",
            "query heads",
            "flop/byte, 1 row",
            f"flop/byte, {query_rows} rows",
            "t free blocks",
            *(["calibrated"] if rates.calibration else []),
            "of the ridge",
        ),
        [
            (
                r["kind"],
                r["query_heads"],
                f"{r['intensity_1_row']:.2f}",
                f"{r['intensity']:.1f}",
                f"{r['t']:.2f}",
                *([number(r["calibrated_t"], ".2f")] if rates.calibration else []),
                f"{r['intensity'] / ridge:.0%}",
            )
            for r in rows
        ],
        [
            f"{BASIS_TEXT[rates.basis]}: ridge {ridge:.1f} flop/byte. "
            "t < 1: even the verify block is bound by products.",
            *_calibrated(rates.calibration, [rates.device]),
        ],
    )


def budgets(title: str, rows: Sequence[dict], calibration: Calibration | None = None) -> None:
    table(
        f"{title}: workgroups and bytes in flight of the C++ kernels, bf16",
        (
            "device",
            "rows",
            "kernel ",
            "workgroups",
            "of units",
            "MB read",
            "KB in flight a unit",
            "of bandwidth",
            "us",
            *(["calibrated"] if calibration else []),
        ),
        [
            (
                r["device"],
                r["rows"],
                r["kernel"],
                r["groups"],
                r["compute_units"],
                f"{r['bytes'] / 1e6:.2f}",
                f"{r['bytes_in_flight_a_unit'] / 1e3:.0f}",
                f"{r['share']:.0%}",
                f"{r['us']:.1f}",
                *([f"{r['calibrated_us']:.1f}"] if calibration else []),
            )
            for r in rows
        ],
        [
            "Derived from the kernels' loads and launches, with a latency of "
            f"{LATENCY_S * 1e6:.1f} us, which is assumed; nothing was measured. us: without the "
            "launch. What is read in less than the latency cannot come near the bandwidth.",
            *_calibrated(calibration, list(dict.fromkeys(r["device"] for r in rows))),
        ],
        keys=3,
    )
