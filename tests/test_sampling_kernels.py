"""The sampling kernels on the CPU and on sim (where the steps are launches of their own, as on a
GPU), and their random numbers."""

import ctypes
import shutil

import harness
import pytest
import torch
from harness import TYPES
from hypothesis import given, settings
from sampling import accept_params, sample_params
from sampling_cases import PLAIN, cases, compare, compare_samples, inputs, kept_ids

from blockdraft import ops, rng
from blockdraft.ops import _sampling
from blockdraft.types import Sampling

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
TARGETS = {"cpu": 0, "sim": 1}
SEED = ctypes.c_uint64


checks = harness.checks


def accept_on(target, seed=1, dropped=-1):
    def run(args, options, u):
        params, outputs, _kept = accept_params(*args, uniforms=u, **options)
        kind = TYPES[args[0].dtype]
        if params is not None:
            checks().check_accept_drafts(TARGETS[target], kind, params, SEED(seed), dropped)
        return outputs

    return run


def sample_on(target, seed=1, dropped=-1):
    def run(logits, length, how, u):
        params, outputs, _kept = sample_params(logits, length, uniforms=u, **how)
        kind = TYPES[logits.dtype]
        if params is not None:
            checks().check_sample_drafts(TARGETS[target], kind, params, SEED(seed), dropped)
        return outputs

    return run


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(case=cases())
def test_accept(case, target):
    same, doubt = compare(case, accept_on(target))
    assert (same | doubt).all()


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(case=cases())
def test_sample(case, target):
    compare_samples(case, sample_on(target))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("rule", ["token", "block"])
def test_several_blocks(target, rule):
    """A vocabulary of more than two blocks, truncated and mixed."""
    for seed in range(2):
        case = PLAIN | dict(
            seed=seed,
            vocab=9001,
            valid=8990,
            mask=4096,
            dtype=torch.bfloat16,
            rule=rule,
            mix="some" if seed else None,
            truncated=bool(seed),
        )
        same, doubt = compare(case, accept_on(target))
        assert (same | doubt).all()
        compare_samples(case, sample_on(target))


@pytest.mark.parametrize("truncated", [False, True])
def test_crews_that_weigh_several_blocks(truncated, monkeypatch):
    """As those of many requests."""
    monkeypatch.setattr(_sampling, "VOCAB_BLOCK", 512)
    case = PLAIN | dict(B=12, vocab=50000, valid=50000, truncated=truncated, pads=False)
    same, doubt = compare(case, accept_on("sim"))
    assert (same | doubt).all()


@pytest.mark.parametrize("K, given_lse", [(31, True), (31, False), (32, True)])
def test_as_many_drafts_as_a_workgroup_keeps(K, given_lse):
    """And one more, whose rows a launch of its own normalises."""
    case = PLAIN | dict(seed=K, K=K, vocab=70, valid=67, mask=4, given_lse=given_lse, pads=False)
    same, doubt = compare(case, accept_on("sim"))
    assert (same | doubt).all()


@pytest.mark.parametrize(
    "rule, temperature, dropped, output",
    [
        ("token", 0.0, 1, "target_logprob"),  # between a row's vocab_blocks and its law
        ("token", 1.0, 5, "accepted"),  # between the rows' laws and the verdict
        ("block", 1.0, 0, "accepted"),  # between the count of crews and whether it is full
    ],
)
def test_sim_notices_a_missing_barrier(rule, temperature, dropped, output):
    case = PLAIN | dict(
        seed=3, B=16, K=3, vocab=17000, valid=17000, mask=-1, rule=rule, temperature=temperature,
        pads=False,
    )  # fmt: skip
    args, options, u = inputs(case)
    expected = getattr(accept_on("sim")(args, options, u), output)
    assert not all(
        torch.equal(
            getattr(accept_on("sim", seed, dropped)(args, options, u), output),
            expected,
        )
        for seed in range(10)
    )


@pytest.mark.parametrize("kind, error", [(0, 3e-7), (1, 1.7e-7), (2, 4e-7)])
@pytest.mark.parametrize("scale", [1.0, 0.75, 1.5])
def test_exponentials(scale, kind, error):
    """Of the CPU, to what tile/scan.h promises: a scale in three bits leaves x * scale without a
    rounding of the test's own."""
    x = torch.cat(
        [
            torch.linspace(-80, 80, 100_000),
            torch.randn(100_000),
            torch.zeros(16),
            torch.full((16,), -torch.inf),
        ]
    ).float()
    x = torch.cat([x, x.new_zeros(-len(x) % 16)])
    out = torch.full_like(x, torch.nan)
    checks().check_exp2(
        kind, ctypes.c_double(scale), harness.pointer(x), harness.pointer(out), len(x)
    )
    expected = torch.exp2(x.double() * (scale if kind else 1))
    assert (out[expected == 0] == 0).all()
    assert (out / expected - 1)[expected > 0].abs().max() < error
    assert kind == 2 or (out[x == 0] == 1).all()


def test_random_numbers():
    seed, position = torch.tensor([0, -7, 2**62 + 5]), torch.tensor([0, 12345, 2**31 - 1])
    uniform = checks().check_uniform
    uniform.restype = ctypes.c_double
    for purpose in (rng.ACCEPT, rng.DRAW, rng.DRAFT):
        expected = rng.uniform(seed, position, 5, purpose)
        for b in range(3):
            got = [
                uniform(
                    ctypes.c_int64(int(seed[b])), ctypes.c_int32(int(position[b])), row, purpose
                )
                for row in range(5)
            ]
            assert got == expected[b].tolist()


def test_published_vectors_of_philox():
    counter, key, out = (
        torch.tensor(words, dtype=torch.int64).to(torch.uint32)
        for words in (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0] * 4,
        )
    )
    checks().check_philox(*map(harness.pointer, (counter, key, out)))
    assert out.tolist() == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


ROWS = {
    "flat": lambda x: x / 100,
    "normal": lambda x: 2 * x,
    "wide": lambda x: 4 * x,
    "peaked": lambda x: torch.where(x == x.amax(-1, keepdim=True), 20.0, x),
    "far from 0": lambda x: x + 300,
    "sorted": lambda x: (2 * x).sort(-1, descending=True).values,
    "few numbers": lambda x: (2 * x).round(),
    "one number": lambda x: 0 * x,
}
CUTS = {
    "top-k 50": Sampling(torch.ones(1), top_k=torch.tensor([50], dtype=torch.int32)),
    "top-k 10000": Sampling(torch.ones(1), top_k=torch.tensor([10000], dtype=torch.int32)),
    "top-p 0.5": Sampling(torch.ones(1), top_p=torch.tensor([0.5])),
    "top-p 0.9": Sampling(torch.ones(1), top_p=torch.tensor([0.9])),
    "top-p 0.999": Sampling(torch.ones(1), top_p=torch.tensor([0.999])),
    "min-p 0.05": Sampling(torch.ones(1), min_p=torch.tensor([0.05])),
    "all": Sampling(
        torch.ones(1),
        torch.tensor([500], dtype=torch.int32),
        torch.tensor([0.9]),
        torch.tensor([0.001]),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("row", ROWS)
def test_readings_of_a_cut(row, dtype):
    """A crew's, after the one that measures the row: one lists the logits around the cut. Another
    scan, which counts as one, states the partials anew from the list, for the draw. Sometimes a cut
    is not in the list. Sim reads the row once more for the greatest logit, which min-p needs. A
    list of many equal logits is too long."""
    vocab = 2**15
    generator = torch.Generator().manual_seed(0)
    logits = ROWS[row](torch.randn(1, 1, vocab, generator=generator)).to(dtype)
    many = len(logits.unique()) < vocab // 256
    length = torch.ones(1, dtype=torch.int32)
    place = torch.zeros(1, dtype=torch.int32)
    u = torch.full((1, 1), 0.5, dtype=torch.float64)
    for name, cut in CUTS.items():
        how = dict(seed=place.long(), position=place, drafter_sampling=cut)
        params, (_, lse), _kept = sample_params(logits, length, uniforms=u, **how)
        readings = checks().check_readings(TYPES[dtype], params)
        _, want = ops.sample_drafts(logits, length, uniforms=u, backend="reference", **how)
        print(f"{row}, {name}, {dtype}: {readings} readings")
        assert torch.equal(kept_ids(logits, lse), kept_ids(logits, want))
        assert torch.allclose(lse[..., :2].sum(-1), want[..., :2].sum(-1), rtol=0, atol=1e-5)
        assert readings <= (8 if many else 4 if cut.min_p is not None else 3)
