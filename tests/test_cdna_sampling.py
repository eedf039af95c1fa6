"""The sampling kernels without an AMD machine: compiled offline for gfx942 and gfx950, and run in
an emulator where one is given."""

import importlib.util
import struct
from functools import cache

import harness
import pytest
import torch
from sampling import accept_params, named, sample_params
from sampling_cases import compare, compare_samples

from blockdraft.ops.accept_drafts import vocabulary_blocks
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
    for r in isa.compile_hip(harness.ROOT / f"csrc/{op}.hip", arch):
        print(
            f"{arch} {r.kernel}: {r.vgpr} VGPR, {r.sgpr_spill} SGPR in lanes, {r.waves_per_simd} waves a SIMD; loop: "
            f"{r.loop_instructions} instructions, {r.loop_loads_16_bytes} 16-byte loads"
        )
        assert r.vgpr_spill == r.scratch == r.lds == 0 and r.waves_per_simd >= 4
        measures = "Li0ELi64E" in r.kernel or "measure" in r.kernel
        assert r.sgpr_spill <= (0 if measures else 64)
        assert not measures or r.loop_loads_16_bytes > 0


@pytest.fixture(scope="session")
def code_objects(tmp_path_factory):
    from emulator import code_object

    folder = tmp_path_factory.mktemp("code")
    return cache(lambda name, arch: code_object(harness.ROOT / f"csrc/{name}.hip", arch, folder))


def accept_in(emulator, code):
    def run(args, options, u):
        params, outputs, kept = accept_params(*args, uniforms=u, **named(options))
        batch, V, vocab = kept["target"].shape
        blocks = vocabulary_blocks(options["num_valid_vocab"])

        def launch(step, threads, rows, blocks_of_row):
            emulator.run(
                code,
                f"accept_drafts_kernelI{MANGLED[kept['target'].dtype]}Li{step}ELi{threads}E",
                batch * rows * blocks_of_row,
                threads,
                bytes(params) + struct.pack("<iii", rows, blocks_of_row, blocks),
            )

        launch(0, 64, 2 * V - 1, blocks)
        launch(1, CREW, 2 * V - 1, 1)
        if options["rule"] == "block" and V > 2:
            launch(2, 64, V - 1, blocks)
        launch(3, 64, 1, 1)
        launch(4, 64, 1, blocks)
        launch(5, CREW, 1, 1)
        if options["with_logprob"]:
            launch(6, CREW, V, 1)
        return outputs

    return run


def sample_in(emulator, code):
    def run(logits, length, how, u):
        params, outputs, _ = sample_params(logits, length, uniforms=u, **named(how))
        rows, blocks = logits.shape[0] * logits.shape[1], vocabulary_blocks(how["num_valid_vocab"])
        for kernel, groups, threads in (("measure", rows * blocks, 64), ("finish", rows, CREW)):
            emulator.run(
                code,
                f"sample_{kernel}_kernelI{MANGLED[logits.dtype]}E",
                groups,
                threads,
                bytes(params) + struct.pack("<i", blocks),
            )
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
