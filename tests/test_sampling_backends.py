"""accept_drafts and sample_drafts: every backend decides as the reference does, but where that is
in doubt by rounding."""

import sys

import pytest
import torch
from hypothesis import given, settings
from sampling_cases import PLAIN, cases, compare, compare_samples, inputs, kept_ids, run_by

from blockdraft import Sampling, env, ops, words_of
from blockdraft.ops import _native
from blockdraft.registry import OPS

BACKENDS = [name for name in OPS["accept_drafts"].backends if name != "reference"]
SLOW = env.triton_interpreter()  # some milliseconds a program
COMMON = PLAIN | dict(mask=-1, given_lse=True, logprob=False, dtype=torch.bfloat16)


def by(backend):
    def run(args, options, u):
        return run_by(ops.accept_drafts, backend, *args, uniforms=u, **options)

    return run


def sampling_by(backend):
    return lambda logits, length, how, u: run_by(
        ops.sample_drafts, backend, logits, length, uniforms=u, **how
    )


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=30 if SLOW else 300, deadline=None, derandomize=True)
@given(case=cases())
def test_decides_as_the_reference(case, backend):
    same, doubt = compare(case, by(backend))
    assert (same | doubt).all()


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("rule", ["token", "block"])
def test_nothing_after_an_impossible_draft_is_read(rule, backend):
    """p(x) of draft 1 is 0: NaN in row 2 goes unnoticed; in row 1 it does not."""
    g = torch.Generator().manual_seed(0)
    target, x = torch.randn(2, 4, 100, generator=g), torch.tensor([[3, 5, 7]] * 2).int()
    draft = target[:, :3].clone()
    target[:, 1, 5] = -torch.inf
    target[0, 2:], target[1, 1, 9] = torch.nan, torch.nan
    v = run_by(
        ops.accept_drafts,
        backend,
        target,
        x,
        torch.tensor([3, 3]).int(),
        torch.ones(2, 1).int(),
        4,
        seed=torch.arange(2),
        position=torch.zeros(2).int(),
        target_sampling=Sampling(torch.ones(2)),
        draft_logits=draft,
        rule=rule,
    )
    assert v.status.tolist() == [0, 1] and v.accepted.tolist() == [1, -1]


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("rule", ["token", "block"])
def test_the_bonus_row_is_read_if_all_drafts_are_kept(rule, backend):
    g = torch.Generator().manual_seed(0)
    target, x = torch.randn(2, 3, 100, generator=g), torch.tensor([[3, 5]] * 2).int()
    draft = target[:, :2].clone()
    target[1, 1, 5] -= 20  # rejected
    target[:, 2] = torch.nan
    v = run_by(
        ops.accept_drafts,
        backend,
        target,
        x,
        torch.tensor([2, 2]).int(),
        torch.ones(2, 1).int(),
        4,
        seed=torch.arange(2),
        position=torch.zeros(2).int(),
        target_sampling=Sampling(torch.ones(2)),
        draft_logits=draft,
        rule=rule,
    )
    assert v.status.tolist() == [1, 0] and v.accepted.tolist() == [-1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_exceptions_are_rare(backend):
    """5,000 random batches; decisions that differ within the margin are counted, of all
    uniforms."""
    tally = dict(draws=0, exceptions=0)

    @settings(max_examples=5000, deadline=None, derandomize=True)
    @given(case=cases())
    def run(case):
        same, doubt = compare(case, by(backend))
        assert (same | doubt).all()
        tally["draws"] += len(same) * (case["K"] + 1)
        tally["exceptions"] += int((~same).sum())

    run()
    print(
        f"{backend}: {tally['exceptions']} of {tally['draws']} draws "
        "decided otherwise within the margin"
    )
    assert tally["exceptions"] < 1e-3 * tally["draws"]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", ["token", "block"])
def test_exceptions_of_random_draws_are_rarer_still(rule, backend):
    """The generator's uniforms over a vocabulary of 2,000, as a decode has them: fewer than one in
    100,000 decides otherwise."""
    if backend == "triton" and SLOW:
        pytest.skip("too many requests for the interpreter")
    draws = exceptions = 0
    for seed in range(100):
        same, doubt = compare(
            COMMON | dict(seed=seed, B=1000, K=3, vocab=2000, valid=1990, rule=rule), by(backend)
        )
        assert (same | doubt).all()
        draws, exceptions = draws + 4 * len(same), exceptions + int((~same).sum())
    print(f"{rule}, {backend}: {exceptions} of {draws} draws decided otherwise within the margin")
    assert exceptions < 1e-5 * draws


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=20 if SLOW else 150, deadline=None, derandomize=True)
@given(case=cases())
def test_samples_as_the_reference(case, backend):
    compare_samples(case, sampling_by(backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "vocab, valid, mask",
    [(262272, 262147, 262144), (151936, 151936, 151935), (7, 7, 3), (1_200_000, 1_200_000, -1)],
)
def test_real_vocabularies(vocab, valid, mask, backend):
    for seed, rule in enumerate(("token", "block")):
        if SLOW and vocab > 10 and rule == "block":
            continue
        case = COMMON | dict(
            seed=seed,
            B=1 if SLOW else 3,
            K=1 if SLOW else 2,
            vocab=vocab,
            valid=valid,
            mask=mask,
            rule=rule,
            logprob=True,
        )
        same, doubt = compare(case, by(backend))
        assert (same | doubt).all()
        compare_samples(case, sampling_by(backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", ["token", "block"])
@pytest.mark.parametrize("truncated", [False, True])
def test_same_bits_in_any_batch_and_with_any_threads(truncated, rule, backend):
    """From the generator's uniforms: each request alone, among others in another order, again, and
    with other thread counts."""
    case = COMMON | dict(
        seed=8,
        B=5,
        K=2 if SLOW else 4,
        vocab=9001 if not SLOW else 300,
        valid=290 if SLOW else 8990,
        rule=rule,
        truncated=truncated,
        given_lse=False,
        logprob=True,
        mix="some",
    )
    (target, x, length, branch, mask_rows), options, _ = inputs(case)
    options["top_n"] = 3
    length[:] = torch.tensor([case["K"], 1, case["K"], 0, -1])

    def run(pick):
        own = {
            name: type(value)(*(None if part is None else part[pick] for part in value))
            if isinstance(value, Sampling)
            else value[pick]
            if isinstance(value, torch.Tensor)
            else value
            for name, value in options.items()
        }
        verdict = run_by(
            ops.accept_drafts,
            backend,
            target[pick],
            x[pick],
            length[pick],
            branch[pick],
            mask_rows,
            **own,
        )
        how = {
            name: own[name]
            for name in ("seed", "position", "drafter_sampling", "num_valid_vocab", "mask_token")
        }
        return [
            *(t for t in verdict if t is not None),
            *run_by(ops.sample_drafts, backend, own["draft_logits"], length[pick], **how),
        ]

    everyone, order = torch.arange(5), torch.tensor([3, 0, 4, 2, 1])
    whole, threads = run(everyone), torch.get_num_threads()
    assert len(set(whole[1].tolist())) > 2
    try:
        for count in (1,) if SLOW else (1, 2, 3):
            torch.set_num_threads(count)
            for picks in [order, everyone[2:3]] if SLOW else [everyone, order, *everyone.split(1)]:
                assert all(torch.equal(a[picks], b) for a, b in zip(whole, run(picks)))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(
    _native.MISSING is not None or sys.platform != "linux",
    reason="needs the C++ kernels, and Linux to ask for peaks",
)
@pytest.mark.parametrize("rule", ["token", "block"])
def test_no_memory_of_the_size_of_the_vocabulary(rule):
    """The peak of the process grows by less than 1 MB in a call over 262,272 ids, where one row of
    float32 is 1 MB."""
    case = COMMON | dict(
        seed=1, B=8, K=4, vocab=262272, valid=262147, rule=rule, truncated=True, logprob=True
    )
    args, options, u = inputs(case)

    def kilobytes(field):
        return next(
            int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)
        )

    def call():
        return ops.accept_drafts(*args, uniforms=u, backend="cpp", **options)

    call()
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    before = kilobytes("VmRSS")
    call()
    assert kilobytes("VmHWM") - before < 1000


def long_rows(vocab, dtype):
    """Rows whose first ids, and those of each vocab_block, tell more or less about the others; with
    many equal logits."""
    g = torch.Generator().manual_seed(0)
    normal = 2 * torch.randn(vocab, generator=g)
    spread = normal * 4
    spike = normal.clone()
    spike[vocab // 2] = 30
    one_block = normal - 20 * (torch.arange(vocab) // 4096 != 1)
    half = torch.zeros(vocab).masked_fill(torch.arange(vocab) % 2 == 0, -torch.inf)
    rows = (
        normal,
        spread,
        spike,
        one_block,
        half,
        normal.round(),
        normal.sort().values,
        normal.sort(descending=True).values,
        torch.zeros(vocab),
    )
    return torch.stack(rows).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_truncation_of_long_rows(backend, dtype):
    """Draws at both ends of the kept ids and between, and the sum of their weights."""
    vocab = 5003 if SLOW else 20011
    rows = long_rows(vocab, dtype)[:: 4 if SLOW else 1]
    how = [(k, p) for k in (0, 1, 50, vocab // 3, vocab - 1) for p in (1.0, 0.9, 0.3, 1e-6)]
    how = how[::5] if SLOW else how[1:]
    top_k, top_p = (torch.tensor(x).repeat_interleave(len(rows)) for x in zip(*how))
    batch = len(top_k)
    u = torch.tensor([0.0, 0.4321, 1 - 2**-53], dtype=torch.float64).expand(batch, 3).contiguous()
    logits = rows.repeat(len(how), 1)[:, None].expand(batch, 3, vocab).contiguous()
    length = torch.full((batch,), 3, dtype=torch.int32)
    zero = torch.zeros(batch, dtype=torch.int32)

    def run(name, by=0.0):
        p = torch.where(top_p < 1, (top_p * (1 + by)).clamp(max=1 - 1e-7), top_p).float()
        sampling = Sampling(torch.ones(batch), top_k.int(), p)
        return run_by(
            ops.sample_drafts,
            name,
            logits,
            length,
            seed=zero.long(),
            position=zero,
            drafter_sampling=sampling,
            uniforms=(u + by).clamp(0, 1 - 2**-53),
        )

    tokens, lse = run(backend)
    want, expected = run("reference")
    doubt = torch.zeros_like(tokens, dtype=torch.bool)
    for by in (-1e-5, 1e-5):
        near, near_lse = run("reference", by)
        doubt |= (near != want) | ((near_lse - expected)[..., :2].abs().amax(-1) > 1e-4)
    assert doubt.float().mean() < 0.3
    assert ((tokens == want) | doubt).all()
    assert torch.allclose(
        lse[..., :2].sum(-1)[~doubt], expected[..., :2].sum(-1)[~doubt], rtol=2e-6, atol=2e-6
    )
    sure = ~doubt[..., None] & (logits > -torch.inf)
    assert torch.equal(kept_ids(logits, lse)[sure], kept_ids(logits, expected)[sure])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_top_logprobs_are_those_of_a_sort(dtype, backend):
    """Over several vocab_blocks, with equal logits, a mask and a cut; of committed rows only."""
    generator = torch.Generator().manual_seed(6)
    vocab, n = 20_000, 20
    target = (2 * torch.randn(3, 2, vocab, generator=generator)).round(decimals=1).to(dtype)
    allowed = torch.rand(3, 2, vocab, generator=generator) < 0.5
    allowed[1] = False
    allowed[1, :, [5, 9000, 19_999]] = True
    target[2, :, [19_000, 3, 4100]] = 11.0
    allowed[2, :, [19_000, 3, 4100]] = True
    sampling = Sampling(torch.ones(3), top_k=torch.tensor([12, 0, 0], dtype=torch.int32))
    zero = torch.zeros(3, dtype=torch.int32)
    v = run_by(
        ops.accept_drafts,
        backend,
        target,
        zero[:, None],
        zero,
        zero[:, None] - 1,
        2,
        seed=zero.long(),
        position=zero,
        target_sampling=sampling,
        drafter="greedy",
        allowed=words_of(allowed),
        with_logprob=True,
        top_n=n,
    )
    logits = target[:, 0].double().masked_fill(~allowed[:, 0], -torch.inf)
    logits[0, logits[0].sort(descending=True, stable=True).indices[12:]] = -torch.inf
    expected = logits.log_softmax(-1)
    order = logits.sort(dim=-1, descending=True, stable=True).indices[:, :n]
    kept = expected.gather(1, order) > -torch.inf
    assert kept.sum(1).tolist() == [12, 3, 20]
    assert torch.equal(v.top_tokens[:, 0].long(), torch.where(kept, order, -1))
    assert order[2, :3].tolist() == [3, 4100, 19_000]
    assert torch.allclose(v.top_logprobs[:, 0].double(), expected.gather(1, order), atol=1e-5)
    assert (v.top_tokens[:, 1] == -1).all() and (v.top_logprobs[:, 1] == -torch.inf).all()
