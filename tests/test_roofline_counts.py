"""The instructions that the timing model takes a wave to execute, against those that an emulator
executes where one is given."""

import re
from collections import Counter
from functools import cache, partial

import cca
import harness
import pytest
import torch
from sampling import accept_params, sample_params

from blockdraft import BlockLayout, ops
from blockdraft.models.quantize import quantize_mxfp4
from blockdraft.roofline import kernel_work, predict, sampler_work
from blockdraft.roofline.costs import distinct_experts
from blockdraft.testing import poisoned, random_pages, random_rows
from blockdraft.types import Sampling

ARCHES = ("gfx942", "gfx950")
CLOSE = 0.1
# The model takes ways with more loads, such as those of masks, which a sampler may not take
CLOSE_OF_SAMPLERS = 0.12


compiled = cache(predict.Compiled)


def expected(shape, kernel, arch):
    """(instructions of all waves of a workgroup, the launch as the model sees it)."""
    work = next(w for w in shape.launches["cpp"](arch) if w.kernel == kernel)
    code = compiled(arch).code(shape.op, "cpp", work.code)
    waves = code.report.threads // 64
    busy = waves if work.busy is None else work.busy
    counts = {idle: way.count() for idle, way in predict.ways(code, work).items()}
    return busy * counts[False] + (waves - busy) * counts[True], work


def executed(counts, work, group=0):
    """Of all waves of a workgroup; None: of the one that does most."""
    (found,) = (c for symbol, c in counts.items() if re.search(work.code, symbol))
    of_groups = Counter()
    for (of, _), count in found.items():
        of_groups[of] += count
    return max(of_groups.values()) if group is None else of_groups[group]


BLOCKS = 4  # vocab_blocks
VOCABULARY = BLOCKS * sampler_work.VOCAB_BLOCK


def agrees(shape, arch, counts, step, group=0):
    total, work = expected(shape, step, arch)
    found = executed(counts, work, group)
    print(f"{arch} {shape.op} {step}: emulated {found}, model {total}")
    assert total == pytest.approx(found, rel=CLOSE_OF_SAMPLERS)


def drawing(K, seed):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, K + 1, VOCABULARY, generator=generator).bfloat16()
    place = dict(seed=torch.tensor([seed]), position=torch.tensor([5], dtype=torch.int32))
    return logits, place, Sampling(torch.ones(1))


@pytest.mark.parametrize("arch", ARCHES)
def test_sample_drafts(arch, hip):
    logits, place, sampling = drawing(1, seed=13)
    length = torch.ones(1, dtype=torch.int32)
    params, (token, _), _kept = sample_params(
        logits[:, 1:], length, drafter_sampling=sampling, **place
    )
    counts = hip.launch(arch, "sample_drafts", params, harness.TYPES[torch.bfloat16])
    assert 0 <= int(token) < VOCABULARY
    for step in ("measure", "finish"):
        agrees(sampler_work.sample(1, VOCABULARY), arch, counts, step)


@pytest.mark.parametrize("arch", ARCHES)
def test_accept_drafts(arch, hip):
    """Drafts that are certain to be kept, up to the first that cannot be."""
    K = sampler_work.ACCEPTED + 1
    logits, place, sampling = drawing(K, seed=6)
    tokens = torch.arange(1, K + 1, dtype=torch.int32)[None]
    length = torch.tensor([K], dtype=torch.int32)
    drafted = logits[:, :K].clone()
    drafted[0, sampler_work.ACCEPTED, :] = 0
    drafted[0, sampler_work.ACCEPTED, tokens[0, sampler_work.ACCEPTED]] = 100
    lse = torch.zeros(1, K, 4, dtype=torch.float64)
    lse[..., 0] = drafted.double().amax(-1)
    lse[..., 1] = (drafted.double() - lse[..., :1]).logsumexp(-1)
    lse[..., 2] = -torch.inf
    branch = torch.ones(1, 1, dtype=torch.int32)
    params, outputs, _kept = accept_params(
        logits, tokens, length, branch, 16, draft_logits=drafted, draft_lse=lse,
        target_sampling=sampling, **place,
    )  # fmt: skip
    counts = hip.launch(arch, "accept_drafts", params, harness.TYPES[torch.bfloat16])
    assert outputs.accepted.tolist() == [sampler_work.ACCEPTED]
    shape = sampler_work.accept(1, VOCABULARY, K)
    agrees(shape, arch, counts, "measure")
    agrees(shape, arch, counts, "draw", None)  # of the one that concludes


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("rows", [16, 64])
def test_attention(rows, arch, hip):
    """A longer prefix: what its tiles add."""
    found, model = [], []
    for context in (256, 512):
        generator = torch.Generator().manual_seed(0)
        masks = rows // 16 - 1
        layout = BlockLayout(15, 16, masks) if masks else BlockLayout(rows - 1, 1, 0)
        rows_ = random_rows(layout, [context], generator, 0.0)
        q, k, v = (
            torch.randn(rows, heads, 128, generator=generator).bfloat16() for heads in (4, 1, 1)
        )
        past = [torch.randn(context, 1, 128, generator=generator).bfloat16()]
        cache, table = random_pages(past, [context], 16, generator)
        out = poisoned(*q.shape, dtype=q.dtype)
        op, args = harness.captured(
            ops.block_attention, q, k, v, cache, cache, table, rows_, out=out
        )
        params = harness.recorded(op, args)
        counts = hip.launch(arch, "block_attention", params, harness.TYPES[torch.bfloat16])
        total, work = expected(kernel_work.attention(1, context, rows), "attend", arch)
        found.append(executed(counts, work))
        model.append(total)
    print(f"{arch} {rows} rows: emulated {found}, model {model}")
    assert model[1] - model[0] == pytest.approx(found[1] - found[0], rel=CLOSE)


@pytest.mark.parametrize("arch", ARCHES)
def test_cca_qkv(arch, hip):
    """Sixteen rows of a KV head without a cache: the longest wave, and one that only multiplies."""
    heads = kernel_work.QUERY_HEADS, kernel_work.KV_HEADS, kernel_work.HEAD_DIM
    arguments = cca.case(BlockLayout(15, 1, 0), [9], heads, (2, 2), 64, torch.bfloat16)
    arguments["rows"].draft_len.fill_(15)
    arguments |= dict.fromkeys(("k_cache", "v_cache", "block_table"))
    call = partial(ops.cca_qkv, **arguments)
    op, args = harness.captured(call)
    counts = hip.launch(arch, "cca_qkv", harness.recorded(op, args), harness.TYPES[torch.bfloat16])
    (work,) = kernel_work.cca(64).launches["cpp"](arch)
    model = predict.ways(compiled(arch).code("cca_qkv", "cpp", work.code), work)
    (found,) = (c for symbol, c in counts.items() if re.search(work.code, symbol))
    waves = [count for (group, _), count in found.items() if group == kernel_work.QUERY_HEADS]
    ways = [model[idle].count() for idle in (False, True)]
    print(f"{arch} cca_qkv: emulated waves {waves}, model {ways}")
    assert ways == [pytest.approx(c, rel=CLOSE) for c in (max(waves), min(waves))]


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("rows, weights", [(1, "bf16"), (16, "bf16"), (16, "mxfp4"), (272, "bf16")])
def test_fused_moe(rows, weights, arch, hip):
    """The first product, of few channels, as the experts that 16 rows or more are spread over: of
    the workgroups that have something to do, on average."""
    experts, hidden = kernel_work.EXPERTS, kernel_work.HIDDEN
    inner = 64 if rows > kernel_work.FEW_PAIRS else 32  # whose gates and ups are a few tiles
    touched = round(distinct_experts(rows, kernel_work.EVEN))
    generator = torch.Generator().manual_seed(0)
    x, gate_up, down = (
        torch.randn(shape, generator=generator).bfloat16()
        for shape in ((rows, hidden), (experts, 2 * inner, hidden), (experts, hidden, inner))
    )
    chosen = (torch.arange(rows, dtype=torch.int32) % touched)[:, None]
    scales, kind = {}, harness.TYPES[torch.bfloat16]
    if weights == "mxfp4":
        gate_up, scales["gate_up_scale"] = quantize_mxfp4(gate_up)
        down, scales["down_scale"] = quantize_mxfp4(down)
        kind = 5
    call = partial(ops.fused_moe, x, chosen, torch.ones(rows, 1), gate_up, down, **scales)
    op, args = harness.captured(call, out=poisoned(rows, hidden, dtype=x.dtype))
    counts = hip.launch(arch, "fused_moe", harness.recorded(op, args), kind)
    total, work = expected(kernel_work.moe(rows, weights), "gate_up", arch)
    (found,) = (c for symbol, c in counts.items() if re.search(work.code, symbol))
    of_groups = Counter()
    for (group, _), count in found.items():
        of_groups[group] += count
    channels = 128 if rows > kernel_work.FEW_PAIRS else 32 if scales else 16  # of a workgroup
    working = sorted(of_groups.values())[-touched * 2 * inner // channels :]
    mean = sum(working) / len(working)
    print(f"{arch} T={rows} {weights}: emulated {mean:.0f} of {len(working)}, model {total}")
    assert total == pytest.approx(mean, rel=CLOSE_OF_SAMPLERS)
