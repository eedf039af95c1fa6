"""The quick rows through pytest-benchmark: `pytest bench --benchmark-only`."""

from functools import cache

import pytest
import torch

from blockdraft.bench.measure import PEER_SLACK
from blockdraft.bench.results import OPS
from blockdraft.bench.rows import all_rows
from blockdraft.registry import Unsupported


@cache
def quick_rows():
    with torch.inference_mode():
        return [build() for op in OPS for build in all_rows(op, ["float32"], quick=True)]


def pytest_generate_tests(metafunc):
    pairs = [
        (row, implementation) for row in quick_rows() for implementation in row.implementations
    ]
    metafunc.parametrize(
        "row, implementation",
        pairs,
        ids=[f"{row.op}-{implementation.name.replace(' ', '_')}" for row, implementation in pairs],
    )


def test_row(benchmark, row, implementation):
    with torch.inference_mode():
        try:
            call = implementation.prepare()
            result = call()
        except ImportError as error:
            pytest.skip(f"peer not installed: {error}")
        except Unsupported as error:
            pytest.skip(str(error))
        row.check(result, PEER_SLACK if implementation.is_peer else 1.0)
        benchmark.group = f"{row.op} {row.label} {row.dtype}"
        benchmark.pedantic(call, rounds=3, warmup_rounds=1)
