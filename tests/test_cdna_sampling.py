"""The sampling kernels without an AMD machine: compiled offline for gfx942 and gfx950, and run in
an emulator where one is given."""

import importlib.util

import harness
import pytest
import torch
from sampling import accept_params, sample_params
from sampling_cases import compare, compare_samples

from blockdraft.roofline import isa

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ziglang") is None, reason="needs ziglang (a clang for amdgcn)"
)
ARCHES = ("gfx942", "gfx950")


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("op", ["accept_drafts", "sample_drafts"])
def test_compiles_without_scratch(op, arch):
    """Nothing goes to memory; kernels that conclude may park scalars in the lanes of a vector
    register."""
    for r in isa.compile_hip(harness.ROOT / f"csrc/ops/{op}/hip.hip", arch):
        print(
            f"{arch} {r.kernel}: {r.vgpr} VGPR, {r.sgpr_spill} SGPR in lanes, "
            f"{r.waves_per_simd} waves a SIMD; loop: {r.loop_instructions} instructions, "
            f"{r.loop_loads_16_bytes} 16-byte loads"
        )
        assert r.vgpr_spill == r.scratch == r.misexecuted == 0 and r.lds <= 256
        measures = "Step)0" in r.kernel
        many = "AcceptStep)2" in r.kernel or (
            measures and ("<float" in r.kernel or "Sample" in r.kernel)
        )
        assert r.waves_per_simd >= (3 if many else 4)
        assert r.sgpr_spill <= (0 if measures else 64)
        assert not measures or r.loop_loads_16_bytes > 0


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
    "two blocks": dict(vocab=4500, valid=4490, mask=4096, K=1, top=20),
    "allowed, truncated, mixed": dict(masked=True, truncated=True, mix="some"),
    "penalised, allowed, block": dict(penalised=True, masked=True, rule="block", K=3),
}


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("dtype", harness.TYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_sampling_in_the_emulator(name, dtype, arch, hip):
    case = (
        dict(
            seed=5,
            B=2,
            K=2,
            vocab=700,
            valid=690,
            mask=17,
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
            dtype=dtype,
        )
        | CASES[name]
    )
    same, doubt = compare(case, accept_in(hip, arch))
    assert (same | doubt).all()
    compare_samples(case, sample_in(hip, arch))


def test_requests_that_share_their_sums_are_caught(planted):
    """Workgroups of different requests take turns, as on a GPU."""
    kernels = planted(
        "ops/accept_drafts/body.h",
        "staged(p.workspace.at(request), p.workspace",
        "staged(p.workspace.at(0), p.workspace",
    )
    with pytest.raises(AssertionError):
        test_sampling_in_the_emulator("token", torch.bfloat16, "gfx942", kernels)
