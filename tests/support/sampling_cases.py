"""Random batches for both samplers, and which decisions of the reference are in doubt."""

import torch
from hypothesis import strategies as st
from torch.utils._pytree import tree_map

from blockdraft import Penalties, Sampling, env, ops, words_of
from blockdraft.reference.distribution import disallowed, excluded, penalised

# A decision is in doubt if the reference itself changes it when uniforms, top_p and min_p change by
# this fraction. The errors of fp32 exponentials (3e-7), sums and a float32 normaliser (1e-6 at lse
# 16) are smaller.
MARGIN = 1e-5
TINY = (1e-3, 1e-9)  # temperatures
FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def run_by(op, backend, *args, **options):
    """An op's result by a backend. The Triton kernels, unless interpreted, run on a GPU; their
    results are copied back."""
    if backend != "triton" or env.triton_interpreter():
        return op(*args, backend=backend, **options)

    def to(device, value):
        return tree_map(lambda x: x.to(device) if isinstance(x, torch.Tensor) else x, value)

    return to("cpu", op(*to("cuda", args), backend=backend, **to("cuda", options)))


def random_penalties(case, generator):
    """Some ids of each request seen, emitted or biased; unused places among the biases."""
    B, vocab = case["B"], case["vocab"]

    def rand(*shape):
        return torch.rand(shape, generator=generator)

    seen, biased = rand(B, vocab) < 0.3, rand(B, vocab) < 0.1
    counts = (rand(B, vocab) * 4).int()
    ids = torch.where(biased, torch.arange(vocab), 2**31 - 1).sort(-1).values[:, : vocab // 4 + 1]
    biased = torch.zeros(B, vocab + 1, dtype=torch.bool).scatter_(1, ids.clamp(max=vocab), True)
    return Penalties(
        touched=words_of(seen | biased[:, :vocab]),
        counts=torch.where(seen, counts, -1),
        repetition=torch.where(rand(B) < 0.7, rand(B) + 0.6, 1.0),
        presence=torch.where(rand(B) < 0.7, rand(B) - 0.3, 0.0),
        frequency=torch.where(rand(B) < 0.7, rand(B) - 0.3, 0.0),
        bias_ids=ids.int(),
        bias=4 * rand(*ids.shape) - 2,
    )


# A case that has nothing special; see `cases`.
PLAIN = dict(
    seed=5,
    B=2,
    K=2,
    mask=17,
    dtype=torch.float32,
    rule="token",
    drafter="sampled",
    mix=None,
    truncated=False,
    temperature=None,
    given_lse=False,
    spoiled=None,
    coarse=False,
    logprob=True,
    pads=True,
)


@st.composite
def cases(draw, vocabularies=(1, 2, 7, 16, 64, 100, 700)):
    vocab = draw(st.sampled_from(vocabularies))
    case = dict(
        seed=draw(st.integers(0, 2**31)),
        B=draw(st.integers(0, 4)),
        K=draw(st.integers(0, 5)),
        vocab=vocab,
        valid=draw(st.integers(max(1, vocab - 5), vocab)),
        mask=draw(st.sampled_from([-1, -1, 0, vocab - 1, vocab // 2])),
        dtype=draw(st.sampled_from(FLOATS)),
        rule=draw(st.sampled_from(["token", "token", "block", "greedy"])),
        drafter=draw(st.sampled_from(["sampled", "sampled", "greedy"])),
        mix=draw(st.sampled_from([None, None, "some"])),
        truncated=draw(st.booleans()),
        temperature=draw(st.sampled_from([None, None, 0.0, 0.3, 5.0, *TINY])),
        given_lse=draw(st.booleans()),
        spoiled=draw(st.sampled_from([None, None, None, -torch.inf, torch.inf, torch.nan])),
        coarse=draw(st.booleans()),
        logprob=draw(st.booleans()),
        top=draw(st.sampled_from([0, 3, 20])),
        masked=draw(st.sampled_from([False, False, True])),
        penalised=draw(st.sampled_from([False, False, True])),
        pads=draw(st.booleans()),
        gap=draw(st.sampled_from([0, 0, 30, 100])),
    )
    if case["temperature"] in TINY:  # float32 is too coarse for a blend and for a normaliser
        case |= dict(mix=None, given_lse=False)
    return case


def inputs(case):
    """Random arguments: draft logits near the target's; sometimes rounded logits (ties), -inf, NaN,
    dead rows, idle requests."""
    generator = torch.Generator().manual_seed(case["seed"])
    B, K, vocab = case["B"], case["K"], case["vocab"]

    def rand(*shape):
        return torch.rand(shape, generator=generator)

    def shaping():
        t = (
            rand(B) + 0.5
            if case["temperature"] is None
            else torch.where(rand(B) < 0.7, case["temperature"], 1.0)
        )
        if not case["truncated"]:
            return Sampling(t)
        k = torch.randint(0, vocab + 2, (B,), generator=generator, dtype=torch.int32)
        return Sampling(
            t,
            k * (rand(B) < 0.7),
            torch.where(rand(B) < 0.7, rand(B) * 0.99 + 0.01, 1.0),
            torch.where(rand(B) < 0.5, rand(B) ** 3, 0.0),
        )

    target = 3 * torch.randn(B, K + 1, vocab, generator=generator)
    draft = target[:, :K] + rand(B, 1, 1) * torch.randn(B, K, vocab, generator=generator)
    if case["coarse"]:
        target, draft = target.round(), draft.round()
    if case["spoiled"] is not None:
        for t in (target, draft):
            t[rand(*t.shape) < (0.2 if case["spoiled"] == -torch.inf else 0.3 / vocab)] = case[
                "spoiled"
            ]
            t[rand(*t.shape[:2]) < 0.05] = -torch.inf
    if case["pads"]:
        target[..., case["valid"] :], draft[..., case["valid"] :] = torch.nan, torch.inf
    target, draft = target.to(case["dtype"]), draft.to(case["dtype"])
    target_sampling, drafter_sampling = shaping(), shaping()
    length = torch.randint(-1, K + 1, (B,), generator=generator, dtype=torch.int32)
    seed, position = (
        torch.randint(2**62, (B,), generator=generator),
        torch.randint(2**30, (B,), generator=generator, dtype=torch.int32),
    )
    common = dict(num_valid_vocab=case["valid"], mask_token=case["mask"])
    allowed = draft_allowed = None
    if case.get("masked"):  # some rows allow much, some little, a few nothing
        share = rand(B, K + 1, 1).round(decimals=1)
        allowed = words_of(rand(B, K + 1, vocab) < share)
        draft_allowed = words_of(rand(B, K, vocab) < share[:, :K] + 0.3)
    penalties = random_penalties(case, generator) if case.get("penalised") else Penalties()
    x, lse = ops.sample_drafts(
        draft,
        length.clamp(min=0),
        seed=seed,
        position=position,
        drafter_sampling=drafter_sampling,
        penalties=penalties,
        allowed=draft_allowed,
        backend="reference",
        **common,
    )
    # Drafts that are no draw from q. The residual may then have a mass of only 1e-100.
    foreign = (rand(B, K) < 0.2) & (case["temperature"] not in TINY)
    x = torch.where(
        foreign & (not case["given_lse"]),
        torch.randint(-1, vocab, (B, K), generator=generator, dtype=torch.int32),
        x,
    )
    rare = (rand(B, K) < 0.3) & (x >= 0)  # improbable for the target, not for the drafter
    target[:, :K].scatter_add_(
        2,
        x.clamp(min=0).long()[..., None],
        (rare * -float(case.get("gap", 0)))[..., None].to(target.dtype),
    )
    branch = torch.randint(-1, K + 1, (B, 3), generator=generator, dtype=torch.int32)
    branch[branch == 0] = -1
    mix = None if case["mix"] is None else rand(B).where(rand(B) < 0.5, (rand(B) < 0.5).float())
    options = dict(
        seed=seed,
        position=position,
        target_sampling=target_sampling,
        drafter_sampling=drafter_sampling,
        draft_logits=draft,
        drafter=case["drafter"],
        draft_lse=lse if case["given_lse"] else None,
        penalties=penalties,
        allowed=allowed,
        draft_allowed=draft_allowed,
        mix=mix,
        rule=case["rule"],
        with_logprob=case["logprob"],
        top_n=case.get("top", 0) * case["logprob"],
        remaining=torch.randint(1, 2 * K + 3, (B,), generator=generator, dtype=torch.int32),
        **common,
    )
    return (
        (target, x, length, branch, K + 1),
        options,
        torch.rand(B, K + 1, generator=generator, dtype=torch.float64),
    )


def moved(options, by):
    def move(s):
        if s.top_p is None:
            return s
        top_p = torch.where(s.top_p < 1, (s.top_p * (1 + by)).clamp(max=1 - 1e-7), s.top_p)
        return s._replace(top_p=top_p, min_p=(s.min_p * (1 + by)).clamp(max=1))

    return {
        **options,
        "target_sampling": move(options["target_sampling"]),
        "drafter_sampling": move(options["drafter_sampling"]),
    }


def equal(a, b):
    """bool [B]: whether the decisions are the same. Of two invalid rows either may be reported."""
    status = (a.status == b.status) | ((a.status > 0) & (b.status > 0))
    return torch.stack([x == y for x, y in zip(a[:5], b[:5])] + [status]).all(0)


def doubtful(args, options, u, want):
    """bool [B]: whether the reference changes its decision `want` within the margin."""
    doubt = torch.zeros(len(u), dtype=torch.bool)
    for by in (-MARGIN, MARGIN):
        v = (u + by * torch.where(torch.arange(u.shape[1]) < u.shape[1] - 1, u, 1.0)).clamp(
            0, 1 - 2**-53
        )
        near = ops.accept_drafts(*args, uniforms=v, backend="reference", **moved(options, by))
        doubt |= ~equal(near, want)
    return doubt


def compare(case, run):
    """Compares run(args, options, uniforms) -> Accepted with the reference. Returns two bool [B]:
    which requests are the same, and which are in doubt."""
    args, options, u = inputs(case)
    got = run(args, options, u)
    want = ops.accept_drafts(*args, uniforms=u, backend="reference", **options)
    same = equal(got, want)
    doubt = torch.zeros_like(same) if same.all() else doubtful(args, options, u, want)
    if case["logprob"] and same.any():
        a, b = got.target_logprob[same].double(), want.target_logprob[same].double()
        assert torch.allclose(a.clamp(min=-300), b.clamp(min=-300), rtol=3e-6, atol=3e-6), (a, b)
        if got.top_tokens is not None:
            assert torch.equal(got.top_tokens[same], want.top_tokens[same])
            a, b = got.top_logprobs[same].double(), want.top_logprobs[same].double()
            assert torch.equal(a == -torch.inf, want.top_tokens[same] == -1)
            assert torch.allclose(a.clamp(min=-300), b.clamp(min=-300), rtol=3e-6, atol=3e-6)
    return same, doubt


def natural(lse, how):
    """float64 [B,K]: the logarithms of the normalisers that draft_lse represents."""
    temperature = how["drafter_sampling"].temperature.double()[:, None]
    drawn = temperature if how["drafter"] == "sampled" else torch.zeros_like(temperature)
    return lse[..., 0] / drawn.where(drawn > 0, 1.0) + lse[..., 1]


def kept_ids(logits, lse):
    """bool [B,K,vocab]: what truncation kept, by the cuts of draft_lse."""
    x, cut, last = logits.double(), lse[..., 2, None], lse[..., 3, None]
    return (x > cut) | ((x == cut) & (torch.arange(x.shape[-1]) <= last))


def compare_samples(case, run):
    """Asserts that run(logits, draft_len, how, uniforms) -> tokens, lse agrees with the
    reference."""
    (_, _, length, _, _), options, _ = inputs(case)
    logits = options["draft_logits"]
    how = {
        name: options[name]
        for name in (
            "seed",
            "position",
            "drafter_sampling",
            "drafter",
            "num_valid_vocab",
            "mask_token",
        )
    }
    how |= dict(allowed=options["draft_allowed"], penalties=options["penalties"])
    u = torch.rand(
        logits.shape[:2], generator=torch.Generator().manual_seed(case["seed"]), dtype=torch.float64
    )
    tokens, lse = run(logits, length, how, u)
    want, want_lse = ops.sample_drafts(logits, length, uniforms=u, backend="reference", **how)
    doubt = torch.zeros_like(tokens, dtype=torch.bool)
    for by in (-MARGIN, MARGIN):
        near, near_lse = ops.sample_drafts(
            logits,
            length,
            uniforms=(u + by).clamp(0, 1 - 2**-53),
            backend="reference",
            **{**how, "drafter_sampling": moved(options, by)["drafter_sampling"]},
        )
        doubt |= (near != want) | ((natural(near_lse, how) - natural(want_lse, how)).abs() > 1e-4)
    assert ((tokens == want) | doubt).all()
    found, wanted = (natural(x, how)[~doubt] for x in (lse, want_lse))
    assert torch.allclose(found, wanted, rtol=2e-6, atol=2e-6)
    banned = excluded(logits.shape[-1], case["valid"], case["mask"], logits.device)
    if how["allowed"] is not None:
        banned = banned | disallowed(how["allowed"], logits.shape[-1])
    if case.get("penalised"):
        logits = penalised(logits, how["penalties"])
    drawn = (~doubt & (want >= 0))[..., None] & ~banned & (logits > -torch.inf)
    mine, theirs = (kept_ids(logits, x)[drawn] for x in (lse, want_lse))
    assert torch.equal(mine, theirs)
