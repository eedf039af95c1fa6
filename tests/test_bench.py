"""The benchmark's own promises: it times only what is right, catches what is slower, and reads only
what it wrote. Speeds are compared on made-up numbers; what needs real ones runs by name."""

import copy
import json
import time

import pytest
import torch
from click.testing import CliRunner

from blockdraft import ops
from blockdraft.bench import measure, names, results, suite
from blockdraft.bench.case import Case, Implementation, Prepared, own
from blockdraft.bench.compare import compare, drift
from blockdraft.bench.estimate import Estimate
from blockdraft.bench.limits import Limits
from blockdraft.bench.tables import show_results
from blockdraft.cli import main
from blockdraft.roofline.costs import Cost

LIMITS = Limits(1, 1e10, 1e11, 2e11, 1e9)


def add_case(pause=0.0, wrong=0.0):
    """A case of y = x + 1, slowed or wrong on demand."""
    x = torch.randn(200_000)

    def ours():
        time.sleep(pause)
        return x + 1 + wrong

    def check(y, slack):
        assert torch.equal(y, x + 1), "values differ"

    def absent():
        raise ImportError("no such package")

    implementations = [
        own("cpp", ours),
        own("reference", lambda: x + 1),
        Implementation("plain", lambda: lambda: x + 1),
        Implementation("twice", lambda: lambda: (x + 0) + 1),
        Implementation("absent", absent),
    ]
    parameters = dict(B=1, rows=2)
    build = lambda: Prepared(implementations, check)  # noqa: E731
    return Case("cca_qkv", parameters, "float32", Cost(2e5, 0, 1.6e6), build)


def run(*cases, **options):
    return measure.run(list(cases), LIMITS, measure.Options(**{"seconds": 0.01, **options}))


def file_of(found):
    machine = {"device": "test"}
    return {"schema": 2, "machine": machine, "limits": LIMITS.to_json(), "results": found}


def made_up(ms=2.0, peer=1.0, mad=0.01):
    """A file with one result of blockdraft's and one of a peer, as if they had been timed."""
    common = dict(op="cca_qkv", case="B=1 rows=2", dtype="float32", threads=1, checked=True)
    common |= dict(flops=2e5, bytes=1.6e6, exps=0, mad=mad, of_limit=0.1)
    return file_of(
        [
            dict(common, impl="cpp", is_peer=False, ms=ms, vs_best_peer=peer / ms),
            dict(common, impl="plain", is_peer=True, ms=peer, vs_best_peer=1.0),
        ]
    )


def test_results_are_complete():
    found = run(add_case())
    results.validate(file_of(found))
    by_name = {result["impl"]: result for result in found}
    ours = by_name["cpp"]
    assert ours["checked"] and ours["ms"] > 0 and not ours["is_peer"]
    best = min(by_name["plain"]["ms"], by_name["twice"]["ms"])
    assert ours["vs_best_peer"] == pytest.approx(best / ours["ms"])
    assert ours["of_limit"] == pytest.approx(0.16 / ours["ms"], rel=1e-6)
    assert by_name["absent"]["ms"] is None and "no such package" in by_name["absent"]["error"]
    assert not measure.failures(found)  # a peer that is not installed is no failure


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, {"cpp"}),
        ({"reference": True}, {"cpp", "reference"}),
        ({"only": "reference"}, {"reference"}),
        ({"only": "cpp", "reference": True}, {"cpp"}),
    ],
)
def test_the_reference_is_timed_on_request(options, expected):
    assert {r["impl"] for r in run(add_case(), **options) if not r["is_peer"]} == expected


def test_the_reference_is_timed_where_it_is_alone():
    case = add_case()
    prepared = case.build()
    alone = Prepared(prepared.implementations[1:], prepared.check)
    found = run(Case(case.op, case.parameters, case.dtype, case.cost, lambda: alone))
    assert found[0]["impl"] == "reference" and found[0]["ms"] > 0


def test_every_op_is_measured():
    """By the same stem, and on parameters that a result file and `--case` can name."""
    public = {name for name in ops.__all__ if not name.endswith("_workspace")}
    assert set(names.OPS) == public | {"attention_block", "decode"}
    for op in names.OPS:
        quick = suite.cases(op, ["float32"], quick=True)
        full = suite.cases(op, ["bfloat16"], quick=False)
        assert len(quick) == 1 and len(full) > 2
        for case in quick + full:
            assert case.cost.bytes > 0
            name, _, value = case.label.split()[-1].partition("=")
            assert name and value
        assert len({case.label for case in full}) == len(full)
    assert len(suite.cases("all", ["float32"], quick=True, having=["B=1", "L=2048"])) == 1


@pytest.mark.parametrize(
    "op, having",
    [
        ("block_attention", {"L=2048,512"}),
        ("accept_drafts", {"B=1", "top_k=50", "rule=token"}),
        ("accept_drafts", {"B=1", "top_k=50", "top_p=0.9"}),
        ("sample_drafts", {"B=1", "top_k=50", "top_p=0.9"}),
    ],
)
def test_outputs_of_unequal_prefixes_and_truncation_are_right(op, having):
    with torch.inference_mode():
        (case,) = suite.cases(op, ["float32"], quick=False, having=list(having))
        prepared = case.build()
        for implementation in prepared.implementations:
            wanted = ("cpp", "reference", "eager", "eager softmax", "lazy rows")
            if implementation.name in wanted:
                prepared.check(implementation.prepare()(), measure.slack(implementation))


def test_limits():
    """Memory; or arithmetic: products at their type's rate, and the rest in fp32."""
    assert LIMITS.milliseconds(Cost(1e9, 0, 1e9), "bfloat16") == pytest.approx(100)
    assert LIMITS.milliseconds(Cost(1e9, 1e6, 1e3, 1e8), "float32") == pytest.approx(10 + 1 + 1)
    assert LIMITS.milliseconds(Cost(1e9, 1e6, 1e3, 1e8), "bfloat16") == pytest.approx(5 + 1 + 1)


def test_the_estimate_follows_what_cases_take():
    now = iter([0.0, 30.0, 60.0])
    estimate = Estimate([add_case()] * 3, LIMITS, 2.0, clock=lambda: next(now))
    first = estimate.next()
    assert first == sum(estimate.guesses) and len({*estimate.guesses}) == 1
    assert estimate.next() == pytest.approx(60)  # each takes 30 s
    assert estimate.next() == pytest.approx(30)
    large = Case("cca_qkv", {}, "float32", Cost(1e13, 0, 0), add_case().build)
    assert Estimate([large], LIMITS, 2.0).guesses[0] > 10 * estimate.guesses[0]


def test_a_wrong_implementation_is_failed_and_not_timed():
    found = run(add_case(wrong=1e-3))
    wrong = found[0]
    assert not wrong["checked"] and wrong["ms"] is None and wrong["of_limit"] is None
    assert "values differ" in wrong["error"]
    assert measure.failures(found) == [wrong]
    verdict = compare(file_of(run(add_case())), results.validate(file_of(found)))[0]
    assert verdict.regressed and verdict.why.startswith("failed")


def test_an_implementation_that_writes_nothing_is_failed():
    """What another implementation left in a shared output must not pass for a result."""
    x, out = torch.randn(64), torch.empty(64)

    def check(y, slack):
        assert torch.equal(y, x + 1), "values differ"

    writes = own("cpp", lambda: torch.add(x, 1, out=out), out)
    prepared = Prepared([writes, own("triton", lambda: out, out)], check)
    case = Case("cca_qkv", dict(B=1), "float32", Cost(1, 0, 1), lambda: prepared)
    assert [result["checked"] for result in run(case)] == [True, False]


def test_a_slower_implementation_is_caught():
    base, head = made_up(ms=2.0), made_up(ms=2.4)
    assert [v.regressed for v in compare(base, head)] == [True]
    assert [v.regressed for v in compare(head, base)] == [False]
    assert not compare(base, made_up(ms=2.2))[0].regressed  # 10 % are allowed
    assert not compare(base, made_up(ms=2.4, mad=0.2))[0].regressed  # within the noise


@pytest.mark.slow
def test_identical_runs_compare_clean_in_nine_of_ten():
    """Wants a quiet machine."""
    files = [file_of(run(add_case(), seconds=0.2)) for _ in range(11)]
    assert sum(any(v.regressed for v in compare(a, b)) for a, b in zip(files, files[1:])) <= 1


@pytest.mark.slow
def test_a_much_slower_implementation_is_caught_by_the_clock():
    base, head = (file_of(run(add_case(pause=p), seconds=0.2)) for p in (2e-3, 40e-3))
    assert [v.regressed for v in compare(base, head)] == [True]
    assert [v.regressed for v in compare(head, base)] == [False]


def test_the_drift_of_the_machine_is_divided_out():
    base, head = made_up(), made_up(ms=2.4, peer=1.2)
    assert drift(base, head) == pytest.approx(1.2)
    assert not compare(base, head)[0].regressed
    assert compare(base, made_up(ms=3.1, peer=1.2))[0].regressed


def test_the_drift_is_bounded():
    assert drift(made_up(), made_up(peer=3.0)) == 1.25
    assert drift(made_up(), made_up(peer=0.1)) == 0.8


def test_a_missing_result_is_a_regression():
    base = made_up()
    assert compare(base, {**base, "results": base["results"][1:]})[0].why == "missing"


@pytest.mark.parametrize("mad, said", [(0.5, True), (0.01, False)])
def test_samples_that_disagree_are_named(mad, said, capsys):
    show_results(made_up(mad=mad))
    assert ("2 of 2 times disagree" in capsys.readouterr().out) == said


@pytest.mark.parametrize(
    "change, where",
    [
        (lambda d: d.update(schema=3), "schema"),
        (lambda d: d.pop("limits"), "limits"),
        (lambda d: d["results"][0].pop("mad"), "mad"),
        (lambda d: d["results"][0].update(op="matmul"), r"results\[0\].op"),
        (lambda d: d["results"][0].update(dtype="fp8"), "dtype"),
        (lambda d: d["results"][0].update(case="8 by 8"), "case"),
        (lambda d: d["results"][0].update(ms="fast"), "ms"),
        (lambda d: d["results"][0].update(checked=False), "ms"),
        (lambda d: d["results"][0].update(ms=-1.0), "more than 0"),
    ],
)
def test_validation(change, where, tmp_path):
    data = made_up()
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


def test_a_file_of_schema_1_is_read(tmp_path):
    data = made_up()
    old = copy.deepcopy({**data, "schema": 1})
    old["rows"] = [{**result, "op": "cca"} for result in old.pop("results")]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(old))
    assert results.load(path) == data
    path.write_text(json.dumps({**old, "rows": None}))
    with pytest.raises(ValueError, match="results: expected a list"):
        results.load(path)


def run_command(op, tmp_path):
    """`blockdraft bench OP --quick`, and what reads its file; gives the results of each op."""
    path = tmp_path / "quick.json"
    outcome = CliRunner().invoke(main, ["bench", op, "--quick", "--json", str(path)])
    assert outcome.exit_code == 0, outcome.output
    assert "cases, about" in outcome.output and "left" in outcome.output
    assert CliRunner().invoke(main, ["bench", "compare", str(path), str(path)]).exit_code == 0
    plotted = CliRunner().invoke(main, ["bench", "plot", str(path), "--out", str(tmp_path)])
    assert plotted.exit_code == 0 and (tmp_path / "ratios.png").stat().st_size > 10_000
    assert (tmp_path / "roofline.png").stat().st_size > 10_000
    found = results.load(path)["results"]
    return {op: [result for result in found if result["op"] == op] for op in names.OPS}


def is_complete(of_op):
    """Checked results of blockdraft's and of at least two real peers."""
    ours = [result["checked"] for result in of_op if not result["is_peer"]]
    peers = [result["checked"] for result in of_op if result["is_peer"]]
    return len(ours) > 0 and all(ours) and sum(peers) >= 2


def test_a_quick_run_end_to_end(tmp_path):
    assert is_complete(run_command("sample", tmp_path)["sample_drafts"])


@pytest.mark.slow
def test_a_quick_run_of_every_op_end_to_end(tmp_path):
    assert [
        op for op, found in run_command("all", tmp_path).items() if not is_complete(found)
    ] == []


def measured_ceilings():
    outcome = CliRunner().invoke(main, ["roofline", "measure", "--threads", "1", "--json"])
    assert outcome.exit_code == 0, outcome.output
    (found,) = json.loads(outcome.output)
    return found


def test_ceilings_are_complete():
    found = measured_ceilings()
    assert found["threads"] == 1 and set(found) == set(LIMITS.to_json())
    sizes, rates = zip(*found.pop("read_again"), strict=True)
    assert all(value > 0 for value in found.values())
    assert sorted(sizes) == list(sizes) and sorted(rates, reverse=True) == list(rates)
    assert rates[-1] >= found["read_bytes_per_s"]


@pytest.mark.slow
def test_ceilings_are_plausible():
    found = measured_ceilings()
    assert found["bf16_flops_per_s"] > 0.5 * found["flops_per_s"]
    assert found["flops_per_s"] > found["exps_per_s"] > 1e7 and found["read_bytes_per_s"] > 1e8


@pytest.mark.parametrize("variant", ["_probe", "_probe_avx512"])
def test_the_exponential_that_is_timed_is_one(variant):
    """Of the variants that were built, only those that this CPU runs may even be loaded."""
    base = pytest.importorskip(
        "blockdraft._probe", reason="built only where there is a C++ compiler"
    )
    if variant == "_probe_avx512" and not base.has_avx512():
        pytest.skip("this CPU has no AVX-512")
    if variant == "_probe":
        probe = base
    else:
        probe = pytest.importorskip(f"blockdraft.{variant}", reason="built only for x86-64")
    for x in torch.linspace(-126, 126.9, 1000).tolist():
        expected = 2.0 ** torch.tensor(x, dtype=torch.float32).double().item()
        assert probe.exponential(x) == pytest.approx(expected, rel=4e-7)


def test_a_whole_pass_by_op(tmp_path):
    """A layer of released widths with a small vocabulary, plain and with a proposal."""
    path = tmp_path / "step.json"
    options = "--layers 1 --vocab 64 --context 32 --batch 2 --proposals 1 --passes 1"
    run = CliRunner().invoke(main, ["bench", "step", *options.split(), "--json", str(path)])
    assert run.exit_code == 0, run.output
    for text in ("batch 2, context 32, 1 layers", "fused_moe", "breaks even at", "peak memory"):
        assert text in run.output
    plain, block = json.loads(path.read_text())["passes"]
    assert plain["proposals"] is None and block["proposals"] == 1
    for each in (plain, block):
        ops_of_it = set(each["by_op"]) - {"the rest"}
        assert ops_of_it == set(each["limit_ms"]) and len(ops_of_it) >= 8
        assert sum(each["by_op"].values()) == pytest.approx(each["seconds"][0])
