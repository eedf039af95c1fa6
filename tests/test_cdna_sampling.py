"""The sampling kernels without an AMD machine: compiled offline for gfx942 and gfx950, and run in
an emulator where one is given."""

import functools
import importlib.util
import re

import harness
import pytest
import torch
from sampling import accept_params, sample_params
from sampling_cases import PLAIN, compare, compare_samples, kept_ids

from blockdraft import ops
from blockdraft.ops import _sampling
from blockdraft.roofline import assembly, isa, loops
from blockdraft.types import Sampling

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ziglang") is None, reason="needs ziglang (a clang for amdgcn)"
)
ARCHES = ("gfx942", "gfx950")


@functools.cache
def listing(op: str, arch: str) -> str:
    return isa.hip_assembly(harness.ROOT / f"csrc/ops/{op}/hip.hip", arch)


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("op", ["accept_drafts", "sample_drafts"])
def test_compiles_without_scratch(op, arch):
    """Nothing goes to memory; kernels that conclude may park scalars in the lanes of a vector
    register, those that cut rows in four. The latter hold a list of logits, and pass it through
    LDS."""
    for r in assembly.parse(listing(op, arch), arch):
        print(
            f"{arch} {r.kernel}: {r.vgpr} VGPR, {r.sgpr_spill} SGPR in lanes, "
            f"{r.waves_per_simd} waves a SIMD; loop: {r.loop_instructions} instructions, "
            f"{r.loop_loads_16_bytes} 16-byte loads"
        )
        measures = "Step)0" in r.kernel
        cuts = "Step)1" in r.kernel or "AcceptStep)3" in r.kernel
        alone = "AcceptStep)4" in r.kernel  # and has the states of a request's rows in LDS
        assert r.vgpr_spill == r.scratch == r.misexecuted == 0
        assert r.waves_per_simd >= (2 if cuts else 4)
        assert r.lds <= (2**15 if cuts else 12 * 2**10 if alone else 0 if measures else 256)
        assert (r.lds > 256) == (cuts or alone)
        assert r.sgpr_spill <= (0 if measures else 256 if cuts else 64)
        assert not measures or r.loop_loads_16_bytes > 0


@pytest.mark.parametrize("arch", ARCHES)
def test_the_last_crew_reads_what_the_others_wrote(arch):
    """Each XCD has an L2 of its own: a crew's masses are written through it (sc1) and have arrived
    before the thread that wrote them counts the crew; the one that concludes then drops what it has
    cached."""
    wait = r"s_waitcnt vmcnt\(0\)"
    store = r"global_store_dwordx2 .* sc1"
    count = r"global_atomic_add v\d+, .* sc0"
    sequences = (store, wait), (count, wait, r"s_barrier", r"buffer_inv sc1")
    steps = {step for sequence in sequences for step in sequence}
    kernels = 0
    text = listing("accept_drafts", arch)
    for report in assembly.parse(text, arch):
        lines = assembly.instructions(report.symbol, text)
        words = [line for line in lines if any(re.match(step, line) for step in steps)]
        starts = [[i for i, w in enumerate(words) if re.match(s[0], w)] for s in sequences]
        if starts == [[], []]:
            continue
        kernels += 1
        for sequence, (i,) in zip(sequences, starts, strict=True):
            found = words[i : i + len(sequence)]
            assert all(map(re.match, sequence, found)), found
        blocks, edges = loops.basic_blocks(lines)
        stores, counts = (
            next(i for i, block in enumerate(blocks) if any(re.match(step, op) for op in block))
            for step in (store, count)
        )
        assert counts in reachable(stores, edges)
        assert stores not in reachable(counts, edges)
    assert kernels == 2 * len(harness.TYPES)


def reachable(block: int, edges: list[set[int]]) -> set[int]:
    """The basic blocks that can come after one, that one only if it is in a loop."""
    found, pending = set(), [block]
    while pending:
        new = edges[pending.pop()] - found
        found |= new
        pending += new
    return found


def accept_in(hip, arch):
    def run(args, options, u):
        params, outputs, _kept = accept_params(*args, uniforms=u, **options)
        hip.launch(arch, "accept_drafts", params, harness.TYPES[args[0].dtype])
        return outputs

    return run


def sample_in(hip, arch):
    def run(logits, length, how, u):
        params, outputs, _kept = sample_params(logits, length, uniforms=u, **how)
        hip.launch(arch, "sample_drafts", params, harness.TYPES[logits.dtype])
        return outputs

    return run


CASES = {
    "token": dict(),
    "block": dict(rule="block", K=3),
    "greedy": dict(rule="greedy", coarse=True),
    "greedy drafter, given normalisers": dict(drafter="greedy", given_lse=True),
    "given normalisers": dict(given_lse=True),
    "mixed, truncated, ties": dict(mix="some", truncated=True, coarse=True, top=5),
    "spoilt": dict(spoiled=torch.nan, B=4),
    "temperature 0 among others, block": dict(temperature=0.0, rule="block"),
    "last block of three": dict(vocab=4099, valid=4099, K=1, pads=False),
    "two blocks": dict(vocab=4500, valid=4490, mask=4096, K=1, top=20),
    "allowed, truncated, mixed": dict(masked=True, truncated=True, mix="some"),
    "penalised, allowed, block": dict(penalised=True, masked=True, rule="block", K=3),
}


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("dtype", harness.TYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_sampling_in_the_emulator(name, dtype, arch, hip):
    case = PLAIN | dict(vocab=700, valid=690, dtype=dtype) | CASES[name]
    same, doubt = compare(case, accept_in(hip, arch))
    assert (same | doubt).all()
    compare_samples(case, sample_in(hip, arch))


@pytest.mark.parametrize("how", [dict(), dict(truncated=True)], ids=str)
def test_more_vocab_blocks_than_lanes_keep(how, hip, monkeypatch):
    """A crew weighs two of them; a wave's lanes keep two each and ask for others again."""
    monkeypatch.setattr(_sampling, "VOCAB_BLOCK", 512)
    case = PLAIN | dict(B=8, K=1, vocab=70000, valid=69990, dtype=torch.bfloat16) | how
    same, doubt = compare(case, accept_in(hip, "gfx942"))
    assert (same | doubt).all()
    compare_samples(case, sample_in(hip, "gfx942"))


def draws_as_the_reference(hip, logits, sampling):
    """A draft of one row: the token, and where the row is cut."""
    place = torch.zeros(1, dtype=torch.int32)
    u = torch.full((1, 1), 0.5, dtype=torch.float64)
    how = dict(seed=place.long(), position=place, drafter_sampling=sampling)
    token, lse = sample_in(hip, "gfx942")(logits, place + 1, how, u)
    want, expected = ops.sample_drafts(logits, place + 1, uniforms=u, backend="reference", **how)
    assert torch.equal(token, want)
    assert torch.equal(kept_ids(logits, lse), kept_ids(logits, expected))
    assert torch.allclose(lse[..., :2].sum(-1), expected[..., :2].sum(-1), rtol=0, atol=1e-6)


def test_vocab_blocks_that_a_wave_cannot_hold(hip, monkeypatch):
    """As those of more than a million ids."""
    monkeypatch.setattr(_sampling, "VOCAB_BLOCK", 8192)
    generator = torch.Generator().manual_seed(0)
    logits = (2 * torch.randn(1, 1, 9000, generator=generator)).bfloat16()
    one = torch.ones(1)
    for sampling in (Sampling(one, min_p=0.1 * one), Sampling(one, top_p=0.7 * one)):
        draws_as_the_reference(hip, logits, sampling)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_around_a_cut_that_stand_close_together(dtype, hip):
    """More of them than a wave can list; then all waves share them."""
    generator = torch.Generator().manual_seed(0)
    logits = (2 * torch.randn(1, 1, 2**16 + 3, generator=generator)).sort(-1, True).values
    top_k = torch.tensor([10000], dtype=torch.int32)
    draws_as_the_reference(hip, logits.to(dtype), Sampling(torch.ones(1), top_k=top_k))


def test_requests_that_share_their_sums_are_caught(planted):
    """Workgroups of different requests take turns, as on a GPU."""
    kernels = planted(
        "ops/accept_drafts/body.h",
        "staged(p.workspace.at(request), p.workspace",
        "staged(p.workspace.at(0), p.workspace",
    )
    with pytest.raises(AssertionError):
        test_sampling_in_the_emulator("token", torch.bfloat16, "gfx942", kernels)


def test_crews_that_were_counted_before_are_caught(planted):
    """The count starts anew with each call."""
    kernels = planted("ops/accept_drafts/body.h", "*memory_.arrived = 0;", ";")
    with pytest.raises(AssertionError):
        test_sampling_in_the_emulator("token", torch.bfloat16, "gfx942", kernels)
