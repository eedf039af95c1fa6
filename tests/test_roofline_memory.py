"""What fits into a device's memory, against sums made apart."""

from dataclasses import replace

import pytest

from blockdraft.layout import BlockLayout
from blockdraft.roofline import devices, memory, models
from blockdraft.roofline.workload import Workload

MI300X = devices.ceilings(devices.load()["MI300X"], "bf16", "achieved")
SMALL = models.find("ZAYA1-8B")
LARGE = models.find("ZAYA1-74B")


def test_windows_keep_no_more_than_themselves():
    """74B: 30 layers keep all, 30 keep 4097 tokens, of 1 KiB each."""
    assert memory.kv_bytes(LARGE, 131072, 2) == 1024 * (30 * 131072 + 30 * 4097)
    assert memory.kv_bytes_unwindowed(LARGE, 131072, 2) == 1024 * 60 * 131072
    assert memory.kv_bytes(LARGE, 100, 2) == memory.kv_bytes_unwindowed(LARGE, 100, 2)
    assert memory.kv_bytes(SMALL, 1000, 1) == 40 * 512 * 1000


def test_the_74b_at_batch_8_and_128k_fits_an_mi300x():
    """Its cache is 33 GB; without windows it would be 64 GB."""
    work = Workload(LARGE, 8, 131072 - 17, branches=())
    found = memory.of(work)
    assert found.cache == pytest.approx(33.2e9, rel=0.01)
    assert found.weights == pytest.approx(149.6e9, rel=0.01)
    assert memory.fits(work, MI300X) and memory.fits(replace(work, branches=(1, 5, 9)), MI300X)
    unwindowed = replace(LARGE, sliding_window=None, layer_types=())
    assert not memory.fits(replace(work, model=unwindowed), MI300X, reserve=0.0)


def test_parts_of_a_pass_by_hand():
    work = Workload(SMALL, 4, 1000, 17, 17, (1, 9))
    layout = BlockLayout(16, 17, 2)
    found = memory.of(work)
    assert found.cache == 4 * 40 * 1024 * 1017
    assert found.states == 4 * 40 * 2 * (2 * 1280 + 128)
    assert found.logits == 4 * (17 + 16) * 262272 * 2
    # the widest layer, and what commit reads of the verify rows of every layer
    row = 4 * 2048 + 2 * (3 * 2048 + 1280 + 2 * 128 + 1280 + 256 + 1024 + 2048)
    kept = 4 * layout.V * 40 * 2 * (1280 + 128)
    assert found.activations == 4 * layout.rows * row + kept
    assert found.total == pytest.approx(sum(vars(found).values()))


def test_the_largest_batch_fits_and_the_next_does_not():
    for context in (1024, 32768, 131072):
        work = Workload(SMALL, 1, context)
        most = memory.max_batch(work, MI300X)
        assert memory.fits(replace(work, batch=most), MI300X)
        assert not memory.fits(replace(work, batch=most + 1), MI300X)
    assert memory.max_batch(work, replace(MI300X, memory_gb=10)) == 0
    assert memory.max_batch(work, replace(MI300X, memory_gb=None)) is None
    with pytest.raises(ValueError, match="reserve: expected a share in 0 .. 1, got 1"):
        memory.room(192, 1)
