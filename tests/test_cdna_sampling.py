"""The sampling kernels without an AMD machine: compiled offline for gfx942 and gfx950, and run in
an emulator where one is given."""

import importlib.util
from functools import cache

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
MANGLED = {torch.float32: "f", torch.bfloat16: "NS_4bf16E", torch.float16: "NS_4fp16E"}
CREW = 512  # threads of a workgroup that concludes on a row or a request


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("op", ["accept_drafts", "sample_drafts"])
def test_compiles_without_scratch(op, arch):
    """Nothing goes to memory; kernels that conclude may park scalars in lanes of a vector
    register."""
    for r in isa.compile_hip(harness.ROOT / f"csrc/ops/{op}/hip.hip", arch):
        print(
            f"{arch} {r.kernel}: {r.vgpr} VGPR, {r.sgpr_spill} SGPR in lanes, "
            f"{r.waves_per_simd} waves a SIMD; loop: {r.loop_instructions} instructions, "
            f"{r.loop_loads_16_bytes} 16-byte loads"
        )
        assert r.vgpr_spill == r.scratch == r.lds == 0 and r.waves_per_simd >= 4
        measures = "StepE0E" in r.kernel
        assert r.sgpr_spill <= (0 if measures else 64)
        assert not measures or r.loop_loads_16_bytes > 0


@pytest.fixture(scope="session")
def code_objects(tmp_path_factory):
    from emulator import code_object

    folder = tmp_path_factory.mktemp("code")
    return cache(
        lambda name, arch: code_object(
            harness.ROOT / f"csrc/ops/{name}/hip.hip", arch, folder, name
        )
    )


def launch(op, step_type, threads, params, dtype, emulator, code):
    """The op's own schedule, each launch in the emulator."""
    for step, groups in harness.schedule(op, params):
        kernel = f"{op}_kernelI{MANGLED[dtype]}LNS_{len(step_type)}{step_type}E{step}EE"
        emulator.run(code, kernel, groups, threads(step), params.raw[:-1])


def accept_in(emulator, code):
    def run(args, options, u):
        params, outputs, _kept = accept_params(*args, uniforms=u, **options)
        threads = lambda step: 64 if step in (0, 2, 3, 4) else CREW  # noqa: E731
        launch("accept_drafts", "AcceptStep", threads, params, args[0].dtype, emulator, code)
        return outputs

    return run


def sample_in(emulator, code):
    def run(logits, length, how, u):
        params, outputs, _kept = sample_params(logits, length, uniforms=u, **how)
        threads = lambda step: CREW if step else 64  # noqa: E731
        launch("sample_drafts", "SampleStep", threads, params, logits.dtype, emulator, code)
        return outputs

    return run


CASES = {
    "token": dict(),
    "block": dict(rule="block", K=3),
    "greedy": dict(rule="greedy", coarse=True),
    "greedy drafter, given normalisers": dict(drafter="greedy", given_lse=True),
    "given normalisers": dict(given_lse=True),
    "mixed, truncated, ties": dict(mix="some", truncated=True, coarse=True),
    "spoilt": dict(spoiled=torch.nan, B=4),
    "temperature 0 among others, block": dict(temperature=0.0, rule="block"),
    "two blocks": dict(vocab=4500, valid=4490, mask=4096, K=1),
    "allowed, truncated, mixed": dict(masked=True, truncated=True, mix="some"),
    "penalised, allowed, block": dict(penalised=True, masked=True, rule="block", K=3),
}


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("dtype", harness.TYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_sampling_in_the_emulator(name, dtype, arch, emulator, code_objects):
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
    same, doubt = compare(case, accept_in(emulator, code_objects("accept_drafts", arch)))
    assert (same | doubt).all()
    compare_samples(case, sample_in(emulator, code_objects("sample_drafts", arch)))
