"""The benchmark's own promises: it times only what is right, catches what is slower, and reads only
what it wrote."""

import copy
import json
import time

import pytest
import torch
from click.testing import CliRunner

from blockdraft.bench import measure, results
from blockdraft.bench.compare import compare, drift
from blockdraft.bench.limits import Limits
from blockdraft.bench.rows import Implementation, Row, own
from blockdraft.cli import main
from blockdraft.roofline.costs import Cost

LIMITS = Limits(1, 1e10, 1e11, 2e11, 1e9)


def add_row(pause=0.0, wrong=0.0):
    """A row whose op is y = x + 1, slowed or wrong on demand."""
    x = torch.randn(200_000)

    def ours():
        time.sleep(pause)
        return x + 1 + wrong

    def check(y, slack):
        assert torch.equal(y, x + 1), "values differ"

    def broken():
        raise ImportError("no such package")

    return Row(
        "cca",
        dict(B=1, rows=2),
        "float32",
        Cost(2e5, 0, 1.6e6),
        [
            own("cpp", ours),
            Implementation("plain", lambda: lambda: x + 1),
            Implementation("twice", lambda: lambda: (x + 0) + 1),
            Implementation("absent", broken),
        ],
        check,
    )


def file_of(**options):
    rows = measure.run([lambda: add_row(**options)], LIMITS, seconds=0.2)
    return {"schema": 1, "machine": {"device": "test"}, "limits": LIMITS.to_json(), "rows": rows}


def test_rows_are_complete():
    data = results.validate(file_of())
    rows = {row["impl"]: row for row in data["rows"]}
    assert rows["cpp"]["checked"] and rows["cpp"]["ms"] > 0 and not rows["cpp"]["is_peer"]
    assert rows["cpp"]["vs_best_peer"] == pytest.approx(
        min(rows["plain"]["ms"], rows["twice"]["ms"]) / rows["cpp"]["ms"]
    )
    assert rows["cpp"]["of_limit"] == pytest.approx(0.16 / rows["cpp"]["ms"], rel=1e-6)
    assert rows["absent"]["ms"] is None and "no such package" in rows["absent"]["error"]
    assert not measure.failures(data["rows"])  # a peer that is not installed is no failure


def test_limits():
    """Memory; or arithmetic: products at their type's rate, and the rest in fp32."""
    assert LIMITS.milliseconds(Cost(1e9, 0, 1e9), "bfloat16") == pytest.approx(100)
    assert LIMITS.milliseconds(Cost(1e9, 1e6, 1e3, 1e8), "float32") == pytest.approx(10 + 1 + 1)
    assert LIMITS.milliseconds(Cost(1e9, 1e6, 1e3, 1e8), "bfloat16") == pytest.approx(5 + 1 + 1)


def test_a_wrong_implementation_is_failed_and_not_timed():
    data = results.validate(file_of(wrong=1e-3))
    row = data["rows"][0]
    assert (
        not row["checked"]
        and row["ms"] is None
        and row["of_limit"] is None
        and "values differ" in row["error"]
    )
    assert measure.failures(data["rows"]) == [row]
    verdict = compare(file_of(), data)[0]
    assert verdict.regressed and verdict.why.startswith("failed")


def test_an_implementation_that_writes_nothing_is_failed():
    """What another implementation left in a shared output must not pass for a result."""
    x, out = torch.randn(64), torch.empty(64)

    def check(y, slack):
        assert torch.equal(y, x + 1), "values differ"

    row = Row(
        "cca",
        dict(B=1),
        "float32",
        Cost(1, 0, 1),
        [own("reference", lambda: torch.add(x, 1, out=out), out), own("cpp", lambda: out, out)],
        check,
    )
    rows = measure.run([lambda: row], LIMITS, seconds=0.01)
    assert [r["checked"] for r in rows] == [True, False]


@pytest.mark.timing
def test_a_slower_implementation_is_caught():
    # more than the drift of the peers may explain away
    base, head = file_of(pause=2e-3), file_of(pause=4e-3)
    assert [v.regressed for v in compare(base, head)] == [True]
    assert [v.regressed for v in compare(head, base)] == [False]


@pytest.mark.timing
def test_identical_runs_compare_clean_in_nine_of_ten():
    files = [file_of() for _ in range(11)]
    assert sum(any(v.regressed for v in compare(a, b)) for a, b in zip(files, files[1:])) <= 1


def test_the_drift_of_the_machine_is_divided_out():
    base = file_of(pause=2e-3)
    head = copy.deepcopy(base)
    for row in head["rows"]:
        if row["ms"]:
            row["ms"] *= 1.2
    assert drift(base, head) == pytest.approx(1.2)
    assert not compare(base, head)[0].regressed
    head["rows"][0]["ms"] *= 1.3
    assert compare(base, head)[0].regressed


def test_a_missing_row_is_a_regression():
    base = file_of()
    assert compare(base, {**base, "rows": base["rows"][1:]})[0].why == "missing"


@pytest.mark.parametrize(
    "change, where",
    [
        (lambda d: d.update(schema=2), "schema"),
        (lambda d: d.pop("limits"), "limits"),
        (lambda d: d["rows"][0].pop("mad"), "mad"),
        (lambda d: d["rows"][0].update(op="matmul"), r"rows\[0\].op"),
        (lambda d: d["rows"][0].update(dtype="fp8"), "dtype"),
        (lambda d: d["rows"][0].update(case="8 by 8"), "case"),
        (lambda d: d["rows"][0].update(ms="fast"), "ms"),
        (lambda d: d["rows"][0].update(checked=False), "ms"),
        (lambda d: d["rows"][0].update(ms=-1.0), "more than 0"),
    ],
)
def test_validation(change, where, tmp_path):
    data = file_of()
    results.save(tmp_path / "ok.json", data)
    assert results.load(tmp_path / "ok.json") == data
    change(data)
    (tmp_path / "bad.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=f"bench results: .*{where}"):
        results.load(tmp_path / "bad.json")
    outcome = CliRunner().invoke(
        main, ["bench", "compare", str(tmp_path / "ok.json"), str(tmp_path / "bad.json")]
    )
    assert outcome.exit_code == 2 and "bench results" in outcome.output


@pytest.mark.timing
def test_quick_run_of_every_op_end_to_end(tmp_path):
    """The command itself: every op has a checked row of blockdraft's and at least two real
    peers."""
    path = tmp_path / "quick.json"
    outcome = CliRunner().invoke(main, ["bench", "all", "--quick", "--json", str(path)])
    assert outcome.exit_code == 0, outcome.output
    rows = results.load(path)["rows"]
    for op in results.OPS:
        own_rows = [r for r in rows if r["op"] == op and not r["is_peer"]]
        assert own_rows and all(r["checked"] for r in own_rows)
        assert sum(r["checked"] for r in rows if r["op"] == op and r["is_peer"]) >= 2, op
    assert CliRunner().invoke(main, ["bench", "compare", str(path), str(path)]).exit_code == 0
    plotted = CliRunner().invoke(main, ["bench", "plot", str(path), "--out", str(tmp_path)])
    assert plotted.exit_code == 0 and (tmp_path / "ratios.png").stat().st_size > 10_000
    assert (tmp_path / "roofline.png").stat().st_size > 10_000


@pytest.mark.timing
def test_ceilings():
    outcome = CliRunner().invoke(main, ["roofline", "measure", "--threads", "1", "--json"])
    assert outcome.exit_code == 0, outcome.output
    found = json.loads(outcome.output)[0]
    assert found["threads"] == 1 and found["bf16_flops_per_s"] > 0.9 * found["flops_per_s"]
    assert found["flops_per_s"] > found["exps_per_s"] > 1e7 and found["read_bytes_per_s"] > 1e8


@pytest.mark.parametrize("variant", ["_probe", "_probe_avx512"])
def test_the_exponential_that_is_timed_is_one(variant):
    probe = pytest.importorskip(
        f"blockdraft.{variant}", reason="built only where there is a C++ compiler, for x86-64"
    )
    if variant != "_probe" and not probe.has_avx512():
        pytest.skip("this CPU has no AVX-512")
    for x in torch.linspace(-126, 126.9, 1000).tolist():
        assert probe.exponential(x) == pytest.approx(
            2.0 ** torch.tensor(x, dtype=torch.float32).double().item(), rel=4e-7
        )
