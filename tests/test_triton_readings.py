"""How often the Triton samplers read a row of logits that they truncate: every address that they
load is counted, under the interpreter (tests/test_triton.py)."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from sampling_cases import kept_ids, random_penalties

pytest.importorskip("triton", reason="triton is not installed")

from triton.runtime import interpreter

from blockdraft import Sampling, env, ops, words_of

if not env.triton_interpreter():
    pytest.skip("test_triton.py runs these under the interpreter", allow_module_level=True)

VOCAB = 20011  # rows so long that a sample plans their lists; no multiple of anything


@contextmanager
def counted(logits):
    """For each row of a contiguous [B,R,vocab]: loads of its elements, by the vocabulary's size."""
    builder, counts = interpreter.InterpreterBuilder, np.zeros(logits.shape[:2])
    load, first, row = builder.create_masked_load, logits.data_ptr(), logits.stride(1)

    def counting(self, ptrs, mask, *args):
        places = (ptrs.data.astype(np.int64) - first) // logits.element_size()
        places = places[np.broadcast_to(mask.data, places.shape)]
        places = places[(places >= 0) & (places < logits.numel())]
        np.add.at(counts.reshape(-1), places // row, 1 / row)
        return load(self, ptrs, mask, *args)

    builder.create_masked_load = counting
    try:
        yield counts
    finally:
        builder.create_masked_load = load


def rows_of(dtype):
    g = torch.Generator().manual_seed(0)
    normal = 2 * torch.randn(VOCAB, generator=g)
    ids = torch.arange(VOCAB)
    peaked = normal.clone()
    peaked[VOCAB // 2] = 30
    rows = dict(
        normal=normal,
        flat=normal / 4,
        far=normal + 300,
        peaked=peaked,
        clustered=normal - 20 * (ids // 4096 != 1),
        ascending=normal.sort().values,
        descending=normal.sort(descending=True).values,
        equal=torch.zeros(VOCAB),
        two=1.0 * (torch.rand(VOCAB, generator=g) < 0.3),
        whole=normal.round(),
        half=torch.where(ids % 2 == 0, -torch.inf, 0.0),
        few=torch.where(torch.rand(VOCAB, generator=g) < 0.002, normal, -torch.inf),
        lowest=torch.where(ids % 3 == 0, torch.finfo(dtype).min, normal),
    )
    return {name: row.to(dtype) for name, row in rows.items()}


HOW = {
    "top-k 50": dict(top_k=50),
    "top-k 1": dict(top_k=1),
    "top-k of a third": dict(top_k=VOCAB // 3),
    "top-p 0.9": dict(top_p=0.9),
    "top-p 0.3": dict(top_p=0.3),
    "min-p 0.1": dict(min_p=0.1),
    "all three": dict(min_p=0.02, top_k=50, top_p=0.9),
    "nearly all, and top-p": dict(top_k=VOCAB - 2, top_p=0.8),
}


def sampling(batch, top_k=0, top_p=1.0, min_p=0.0, temperature=1.0):
    each = torch.ones(batch)
    return Sampling(temperature * each, (top_k * each).int(), top_p * each, min_p * each)


def draw(backend, logits, how, **options):
    batch, K, _ = logits.shape
    zero = torch.zeros(batch, dtype=torch.int32)
    return ops.sample_drafts(
        logits,
        zero + K,
        seed=zero.long(),
        position=zero,
        drafter_sampling=sampling(batch, **how),
        uniforms=torch.full((batch, K), 0.4321, dtype=torch.float64),
        backend=backend,
        **options,
    )


def agree(logits, how, **options):
    """Draws as the reference does, and keeps what it keeps; returns the readings of each row."""
    with counted(logits) as readings:
        tokens, lse = draw("triton", logits, how, **options)
    want, expected = draw("reference", logits, how, **options)
    assert torch.equal(tokens, want)
    assert torch.allclose(lse[..., :2].sum(-1), expected[..., :2].sum(-1), rtol=2e-6, atol=2e-6)
    known = (want >= 0)[..., None] & (logits > -torch.inf)
    assert torch.equal(kept_ids(logits, lse)[known], kept_ids(logits, expected)[known])
    return readings


QUICK = ("top-k 50", "top-p 0.9", "min-p 0.1", "all three")


@pytest.mark.parametrize(
    "name, dtype",
    [
        pytest.param(
            name,
            (torch.bfloat16, torch.float32)[i % 2],
            marks=() if name in QUICK else pytest.mark.slow,
        )
        for i, name in enumerate(HOW)
    ],
)
def test_a_draw_reads_a_row_at_most_three_times(name, dtype):
    """Two readings, and the vocab_blocks of the draw and of the last of equal ids at the cut."""
    logits = torch.stack(list(rows_of(dtype).values()))[:, None].contiguous()
    readings = agree(logits, HOW[name])
    print(name, readings[:, 0].round(2))
    assert (readings > 2).all() and (readings < 2 + 2 * 4096 / VOCAB + 0.01).all()


def test_masked_and_penalised_rows_are_read_no_more_often():
    g = torch.Generator().manual_seed(1)
    logits = torch.stack(list(rows_of(torch.float32).values())[:4])[:, None].contiguous()
    options = dict(
        allowed=words_of(torch.rand(4, 1, VOCAB, generator=g) < 0.7),
        penalties=random_penalties(dict(B=4, vocab=VOCAB), g),
        num_valid_vocab=VOCAB - 5,
        mask_token=4100,
    )
    # biases are looked up one by one
    short = options["penalties"].bias_ids[:, :2].contiguous()
    bias = options["penalties"].bias[:, :2].contiguous()
    options["penalties"] = options["penalties"]._replace(bias_ids=short, bias=bias)
    assert (agree(logits, dict(top_k=50, top_p=0.9), **options) < 2.5).all()


def test_a_row_without_a_distribution_is_read_once():
    logits = torch.stack(list(rows_of(torch.float32).values())[:3])[:, None].contiguous()
    logits[0, 0, 7] = torch.nan
    logits[1, 0, 12345] = torch.inf
    logits[2] = -torch.inf
    with counted(logits) as readings:
        tokens, lse = draw("triton", logits, HOW["all three"])
    assert (tokens == -1).all() and (lse == 0).all()
    assert (readings <= 1.001).all()


def test_a_row_whose_sample_deceives_is_searched():
    """The ids of the sample are no others' like: the cuts are elsewhere, or the list has no
    room."""
    sampled = torch.arange(VOCAB) % 1024 < 64
    normal = rows_of(torch.float32)["normal"]
    rows = (
        torch.where(sampled, 0.0, normal + 9),
        torch.where(sampled, normal + 9, 0.0),
        torch.where(sampled, normal, normal.clamp(0, 1e-3)),
    )
    logits = torch.stack(rows)[:, None].contiguous()
    for how in (dict(top_k=2000), dict(top_p=0.9), dict(min_p=0.001, top_k=5000, top_p=0.5)):
        readings = agree(logits, how)
        print(how, readings[:, 0].round(2))
        assert readings.max() > 4 and readings.max() < 45


def test_bits_do_not_depend_on_the_order_of_programs(monkeypatch):
    """Which decides the order of a list."""
    logits = torch.stack(list(rows_of(torch.float32).values()))[:, None].contiguous()
    found = [draw("triton", logits, how) for how in (HOW["all three"], HOW["top-p 0.9"])]
    place = interpreter.InterpreterBuilder.set_grid_idx

    def last_first(self, x, y, z):
        place(self, self.grid_dim[0] - 1 - x, y, z)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "set_grid_idx", last_first)
    again = [draw("triton", logits, how) for how in (HOW["all three"], HOW["top-p 0.9"])]
    assert all(torch.equal(a, b) for one, two in zip(found, again) for a, b in zip(one, two))


@pytest.mark.parametrize("rule", ["token", "block"])
def test_a_verdict_reads_a_row_at_most_three_times(rule):
    """The third one weighs the row that the token is drawn from, beside the drafter's. Drafts of
    sample_drafts come with their cuts: the drafter's rows are not truncated again."""
    g = torch.Generator().manual_seed(3)
    rows = rows_of(torch.float32)
    target = torch.stack([rows["normal"], rows["flat"], rows["whole"]])[None].contiguous()
    draft = (target[:, :2] + torch.randn(1, 2, VOCAB, generator=g)).contiguous()
    how = dict(top_k=2000, top_p=0.9)
    tokens, lse = draw("reference", draft, how)
    zero = torch.zeros(1, dtype=torch.int32)

    def run(backend, lse):
        return ops.accept_drafts(
            target,
            tokens,
            zero + 2,
            zero[:, None] + 1,
            3,
            seed=zero.long(),
            position=zero,
            target_sampling=sampling(1, **how),
            draft_logits=draft,
            draft_lse=lse,
            rule=rule,
            with_logprob=True,
            uniforms=torch.full((1, 3), 0.6, dtype=torch.float64),
            backend=backend,
        )

    for given in (lse, None):
        with counted(target) as of_target, counted(draft) as of_draft:
            got = run("triton", given)
        want = run("reference", given)
        assert got.accepted.equal(want.accepted) and got.next_token.equal(want.next_token)
        assert torch.allclose(got.target_logprob, want.target_logprob, atol=1e-5)
        block = 4096 / VOCAB
        surplus = rule == "block"
        print(of_target.round(2), of_draft.round(2))
        assert (of_target < 3 + surplus + 2 * block).all()
        assert (of_draft < 1 + surplus + 2 * block + 2 * (given is None)).all()
