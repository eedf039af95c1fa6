"""The instructions that the timing model takes a wave to execute, against those that an emulator
executes where one is given."""

import re

import harness
import pytest
import torch

from blockdraft import BlockLayout, ops
from blockdraft.roofline import kernel_work, predict
from blockdraft.testing import poisoned, random_pages, random_rows

ARCHES = ("gfx942", "gfx950")
CLOSE = 0.1


def expected(shape, kernel, arch):
    """(instructions of all waves of a workgroup, the launch as the model sees it)."""
    work = next(w for w in shape.launches["cpp"](arch) if w.kernel == kernel)
    code = predict.Compiled(arch).code(shape.op, "cpp", work.code)
    waves = code.report.threads // 64
    busy = waves if work.busy is None else work.busy
    counts = {idle: code.router.route(work.trips, idle).count() for idle in (False, True)}
    return busy * counts[False] + (waves - busy) * counts[True], work


def executed(counts, work, group=0):
    """Of all waves of a workgroup."""
    (found,) = (c for symbol, c in counts.items() if re.search(work.code, symbol))
    return sum(count for (of, _), count in found.items() if of == group)


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
