"""Everything of acceptance that is not its law: proposals, truncation, statuses, exclusion,
log-probabilities."""

import pytest
import torch

from blockdraft import Sampling, env, ops
from blockdraft.registry import OPS


def call(logits, x, D, branch=None, draft=None, mask_rows=4, temperature=1.0, u=None, **kwargs):
    B, V, _ = logits.shape
    i32 = dict(dtype=torch.int32)
    branch = torch.full((B, 1), -1, **i32) if branch is None else torch.tensor(branch, **i32)
    options = dict(
        seed=torch.arange(B),
        position=torch.zeros(B, **i32),
        target_sampling=Sampling(torch.full((B,), temperature)),
        draft_logits=draft,
        uniforms=u,
    )
    return ops.accept_drafts(
        logits,
        torch.tensor(x, **i32).reshape(B, V - 1),
        torch.tensor(D, **i32),
        branch,
        mask_rows,
        **{**options, **kwargs},
    )


def peaked(tokens, vocab=6):
    """Logits whose argmax is `tokens`."""
    logits = torch.zeros(*torch.tensor(tokens).shape, vocab)
    return logits.scatter_(-1, torch.tensor(tokens)[..., None], 5.0)


def test_proposal_shift_and_next_length():
    target = peaked([[1, 2, 3, 4]] * 6)
    drafts = [[0, 0, 0], [1, 0, 0], [1, 2, 0], [1, 2, 3], [1, 2, 3], [1, 2, 3]]
    branch = [[1, 3], [3, 1], [3, 3], [2, -1], [-1, -1], [4, 1]]
    v = call(target, drafts, [3] * 6, branch, rule="greedy", mask_rows=4)
    assert v.accepted.tolist() == [0, 1, 2, 3, 3, 3]
    assert v.next_token.tolist() == [1, 2, 3, 4, 4, 4]
    assert v.proposal.tolist() == [0, 1, 0, 0, -1, 0]
    assert v.shift.tolist() == [0, 1, 0, 2, 0, 0]
    assert v.draft_len.tolist() == [3, 2, 3, 1, 0, 3]
    remaining = torch.tensor([1, 3, 5, 6, 4, 6], dtype=torch.int32)
    v = call(target, drafts, [3] * 6, branch, rule="greedy", mask_rows=4, remaining=remaining)
    assert v.draft_len.tolist() == [0, 0, 1, 1, 0, 1]


def test_idle_request_emits_nothing():
    v = call(peaked([[1, 2]] * 2), [[1], [1]], [-1, 1], rule="greedy", with_logprob=True)
    assert (
        v.accepted.tolist() == [-1, 1]
        and v.next_token.tolist() == [-1, 2]
        and v.draft_len.tolist() == [-1, 0]
    )
    assert (v.target_logprob[0] == 0).all()


@pytest.mark.parametrize("value, status", [(torch.nan, 1), (torch.inf, 1), (-torch.inf, 2)])
def test_status_only_of_rows_that_are_read(value, status):
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(3, 3, 6, generator=generator)
    draft = torch.randn(3, 2, 6, generator=generator)
    zero = torch.zeros(3, 3, dtype=torch.float64)
    x = draft.argmax(-1).tolist()
    target[:, 0].copy_(draft[:, 0])  # draft 0 is accepted with u = 0
    clean = call(target, x, [2, 2, 2], draft=draft, u=zero)
    target[0, 2] = value  # bonus row of request 0
    target[1, 1, 3 if status == 1 else slice(None)] = value
    dirty = call(target, x, [2, 2, 2], draft=draft, u=zero)
    assert clean.status.tolist() == [0, 0, 0]
    assert (
        dirty.status.tolist()[1:] == [status, 0]
        and dirty.accepted[1] == -1
        and dirty.next_token[1] == -1
    )
    for a, b in zip(clean[:5], dirty[:5]):
        assert a[2] == b[2]
    # a row that no decision needs may hold anything: shorten request 0 to one draft
    short = call(target, x, [1, 0, 2], draft=draft, u=zero)
    assert short.status.tolist() == [0, 0, 0]


def test_padded_vocabulary_and_mask_token_are_never_emitted():
    generator = torch.Generator().manual_seed(1)
    target, draft = (
        torch.randn(500, 2, 9, generator=generator),
        torch.randn(500, 1, 9, generator=generator),
    )
    target[..., 6:], target[..., 2] = torch.nan, 50.0  # padding may hold anything
    draft[..., 7] = torch.inf
    v = call(
        target,
        [[i % 9] for i in range(500)],
        [1] * 500,
        draft=draft,
        num_valid_vocab=6,
        mask_token=2,
    )
    assert (v.status == 0).all()
    assert set(v.next_token.tolist()) == {0, 1, 3, 4, 5}


def test_zero_residual_draws_from_p():
    logits = torch.zeros(1, 2, 4)
    u = torch.full((1, 2), 1 - 2.0**-24, dtype=torch.float64)
    assert call(logits, [[0]], [1], draft=logits[:, :1], u=u).accepted.item() == 1
    target = torch.tensor([[[0.0, -torch.inf, -torch.inf], [0.0, 0.0, 0.0]]])
    v = call(target, [[1]], [1], drafter="greedy", u=torch.zeros(1, 2, dtype=torch.float64))
    assert v.accepted.item() == 0 and v.next_token.item() == 0  # p has only id 0


@pytest.mark.parametrize(
    "top_k, top_p, expected",
    [
        (2, 1.0, {0, 2}),
        (0, 0.5, {0, 2}),
        (3, 1.0, {0, 1, 2}),
        (1, 1.0, {0}),
        (3, 0.65, {0, 2}),
        (0, 1.0, {0, 1, 2, 3}),
        (0, 0.7, {0, 1, 2}),
    ],
)
def test_truncation(top_k, top_p, expected):
    """p = .3 .2 .3 .2: ties go to the lower id; top-p acts on what top-k kept."""
    p = torch.tensor([0.3, 0.2, 0.3, 0.2])
    n = 400
    sampling = Sampling(
        torch.ones(n), torch.full((n,), top_k, dtype=torch.int32), torch.full((n,), top_p)
    )
    u = torch.stack([torch.linspace(0, 1 - 1e-9, n, dtype=torch.float64)], 1)
    v = call(
        p.log().expand(n, 1, 4).contiguous(),
        [[]] * n,
        [0] * n,
        u=u,
        target_sampling=sampling,
        with_logprob=True,
    )
    assert set(v.next_token.tolist()) == expected
    kept = torch.tensor(sorted(expected))
    for token in expected:
        share = (v.next_token == token).float().mean().item()
        want = (p[token] / p[kept].sum()).item()
        assert abs(share - want) < 0.01
        assert abs(v.target_logprob[v.next_token == token][0, 0].exp().item() - want) < 1e-5


def test_temperature_zero_is_greedy_in_any_mode_and_company():
    generator = torch.Generator().manual_seed(4)
    target = torch.randn(6, 3, 8, generator=generator)
    draft = torch.randn(6, 2, 8, generator=generator)
    x = target[:, :2].argmax(-1)
    x[3:, 1] = (x[3:, 1] + 1) % 8
    mixed = Sampling(torch.tensor([0.0, 1, 0, 0, 1, 0]))
    for rule in ("token", "block", "greedy"):
        v = call(target, x.tolist(), [2] * 6, draft=draft, rule=rule, target_sampling=mixed)
        for b in (0, 2, 3, 5):
            a = 2 if b < 3 else 1
            assert v.accepted[b] == a and v.next_token[b] == target[b, a].argmax()


def test_same_bits_in_any_batch():
    generator = torch.Generator().manual_seed(5)
    target, draft = (
        torch.randn(9, 4, 50, generator=generator),
        torch.randn(9, 3, 50, generator=generator),
    )
    x = torch.randint(50, (9, 3), generator=generator).int()
    seed, position = (
        torch.randint(2**62, (9,), generator=generator),
        torch.arange(9, dtype=torch.int32),
    )

    def run(pick):
        ones = torch.ones(len(pick))
        return ops.accept_drafts(
            target[pick],
            x[pick],
            torch.full((len(pick),), 3, dtype=torch.int32),
            torch.ones(len(pick), 2, dtype=torch.int32),
            4,
            seed=seed[pick],
            position=position[pick],
            target_sampling=Sampling(ones),
            draft_logits=draft[pick],
            with_logprob=True,
            top_n=3,
            rule="block",
        )

    whole, order = run(torch.arange(9)), torch.randperm(9, generator=generator)
    for a, b in zip(whole, run(order)):
        assert torch.equal(a[order], b)
    for b in range(9):
        for a, c in zip(whole, run(torch.tensor([b]))):
            assert torch.equal(a[b], c[0])


def test_empty_batch():
    i32 = dict(dtype=torch.int32)
    v = ops.accept_drafts(
        torch.zeros(0, 3, 5),
        torch.zeros(0, 2, **i32),
        torch.zeros(0, **i32),
        torch.zeros(0, 1, **i32),
        3,
        seed=torch.zeros(0, dtype=torch.int64),
        position=torch.zeros(0, **i32),
        target_sampling=Sampling(torch.zeros(0)),
        draft_logits=torch.zeros(0, 2, 5),
    )
    assert v.accepted.shape == (0,)


def test_sample_drafts():
    generator = torch.Generator().manual_seed(6)
    n = 4000
    logits = torch.randn(1, 2, 5, generator=generator).expand(n, 2, 5).contiguous()
    drafter_sampling = Sampling(torch.full((n,), 0.7), torch.full((n,), 3, dtype=torch.int32))
    length = torch.full((n,), 2, dtype=torch.int32)
    length[0] = 1
    tokens, lse = ops.sample_drafts(
        logits,
        length,
        seed=torch.arange(n),
        position=torch.zeros(n, dtype=torch.int32),
        drafter_sampling=drafter_sampling,
    )
    assert tokens[0, 1] == -1 and (lse[0, 1] == 0).all()
    for row in range(2):
        scaled = logits[0, row].double() / 0.7
        kept = scaled >= scaled.sort(descending=True).values[2]
        q = scaled.masked_fill(~kept, -torch.inf).softmax(0)
        counts = torch.bincount(tokens[1:, row].long(), minlength=5)
        assert (counts[~kept] == 0).all()
        assert (counts / (n - 1) - q).abs().max() < 0.03
        top, log_sum, _, _ = lse[1, row]
        got = ((logits[1, row].double() - top) / 0.7 - log_sum).exp()[kept]
        assert (got - q[kept]).abs().max() < 1e-6
    logits[3, 0, 2] = torch.nan
    greedy, _ = ops.sample_drafts(
        logits,
        length,
        seed=torch.arange(n),
        position=torch.zeros(n, dtype=torch.int32),
        drafter_sampling=drafter_sampling,
        drafter="greedy",
    )
    assert (
        greedy[3].tolist() == [-1, logits[0, 1].argmax()]
        and (greedy[4:] == logits[0].argmax(-1)).all()
    )


@pytest.mark.parametrize("rule", ["token", "block", "greedy"])
def test_a_blend_of_disjoint_supports_is_no_law(rule):
    inf = torch.inf
    target = torch.tensor([[[0.0, 0.0, -inf, -inf, -inf, -inf]] * 2])
    draft = torch.tensor([[[-inf, -inf, 0.0, 0.0, -inf, -inf]]])
    v = call(
        target,
        [[2]],
        [1],
        draft=draft,
        rule=rule,
        mix=torch.tensor([0.5]),
        num_valid_vocab=4,
        mask_token=0,
    )
    assert v.status.item() == 2 and v.accepted.item() == -1 and v.next_token.item() == -1


def test_every_id_of_a_real_vocabulary_can_be_drawn():
    """The resolution of the uniforms: neighbours of a rare id must get different numbers."""
    from blockdraft import rng

    u = rng.uniform(torch.arange(100_000), torch.zeros(100_000), 1, rng.DRAW).flatten()
    assert len(u.unique()) == len(u)  # 24 bits would repeat about 300 times
    assert ((u * 2**24) % 1 != 0).float().mean() > 0.99


BACKENDS = [
    name for name in OPS["accept_drafts"].backends if name != "triton" or env.triton_interpreter()
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "gap, temperature, mask", [(100, 1.0, 17), (100, 1.0, -1), (30, 0.3, 17), (26, 0.3, 0)]
)
def test_a_draft_that_the_target_all_but_excludes(gap, temperature, mask, backend):
    """The block rule's p_i underflows; what q leaves out must stay left out, and the request
    alive."""
    generator = torch.Generator().manual_seed(2)
    target, draft = (
        torch.randn(1, 4, 40, generator=generator),
        torch.randn(1, 3, 40, generator=generator),
    )
    x = [3, 5, 7]
    target[0, 0, 3] -= gap
    v, want = (
        call(
            target,
            [x],
            [3],
            draft=draft,
            rule="block",
            mask_token=mask,
            temperature=temperature,
            u=torch.full((1, 4), 0.4).double(),
            backend=name,
        )
        for name in (backend, "reference")
    )
    assert (
        v.status.item() == 0
        and v.accepted.equal(want.accepted)
        and v.next_token.equal(want.next_token)
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", ["token", "block"])
def test_drafts_that_neither_law_knows(rule, backend):
    """p = 0 first, then tokens of q = 0: none is kept, whatever the order in which ratios are
    multiplied."""
    generator = torch.Generator().manual_seed(3)
    target, draft = (
        torch.randn(1, 5, 9, generator=generator),
        torch.randn(1, 4, 9, generator=generator),
    )
    x = [1, 2, 3, 4]
    target[0, 0, 1] = -torch.inf
    for i in (1, 2, 3):
        draft[0, i, x[i]] = -torch.inf
    v = call(
        target,
        [x],
        [4],
        draft=draft,
        rule=rule,
        u=torch.zeros(1, 5, dtype=torch.float64),
        backend=backend,
    )
    assert v.accepted.item() == 0 and v.status.item() == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("temperature", [1e-8, 1e-10, 1e-38])
def test_tiny_temperatures(temperature, backend):
    generator = torch.Generator().manual_seed(4)
    logits = 8 * torch.randn(20, 3, 50, generator=generator)
    ones = torch.ones(20)
    how = dict(
        seed=torch.arange(20),
        position=torch.zeros(20, dtype=torch.int32),
        drafter_sampling=Sampling(temperature * ones),
        backend=backend,
    )
    tokens, lse = ops.sample_drafts(logits, torch.full((20,), 3, dtype=torch.int32), **how)
    assert torch.equal(tokens.long(), logits.argmax(-1))
    assert torch.equal(lse[..., 0], logits.amax(-1).double())
    assert lse[..., 1].abs().max() < 1e-12  # alone at the top
    u = torch.full((20, 3), 0.9, dtype=torch.float64)
    v = call(
        logits,
        [[0, 0]] * 20,
        [0] * 20,
        u=u,
        temperature=temperature,
        draft=logits[:, :2],
        backend=backend,
    )
    assert torch.equal(v.next_token.long(), logits[:, 0].argmax(-1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_of_the_lowest_numbers_is_a_law(backend):
    logits = torch.full((1, 1, 40), torch.finfo(torch.float32).min)
    how = dict(
        seed=torch.zeros(1, dtype=torch.int64),
        position=torch.zeros(1, dtype=torch.int32),
        drafter_sampling=Sampling(torch.ones(1)),
    )
    u = torch.tensor([[0.51]], dtype=torch.float64)
    tokens, _ = ops.sample_drafts(
        logits, torch.ones(1, dtype=torch.int32), uniforms=u, backend=backend, **how
    )
    assert tokens.item() == 20


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(top_n=3), "accept_drafts: top_n: expected 0 without with_logprob, got 3"),
        (dict(top_n=21, with_logprob=True), r"accept_drafts: top_n: expected 0 .. 20, got 21"),
        (dict(top_n=True, with_logprob=True), r"accept_drafts: top_n: expected 0 .. 20, got True"),
    ],
)
def test_refused_top_logprobs(options, message):
    with pytest.raises(ValueError, match=message):
        call(peaked([[1, 2]]), [[1]], [1], rule="greedy", **options)
