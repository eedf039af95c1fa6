"""The quick cases through pytest-benchmark, run by name:

    pytest tests/bench_quick.py --benchmark-only

Every output is compared with the reference; no speed is asserted.
"""

from functools import cache

import pytest
import torch

from blockdraft.bench import suite
from blockdraft.bench.measure import slack
from blockdraft.registry import Unsupported


@cache
def quick_cases():
    with torch.inference_mode():
        return [(case, case.build()) for case in suite.cases("all", ["float32"], quick=True)]


def pytest_generate_tests(metafunc):
    found = [
        pytest.param(case, prepared, one, id=f"{case.op}-{one.name.replace(' ', '_')}")
        for case, prepared in quick_cases()
        for one in prepared.implementations
    ]
    metafunc.parametrize("case, prepared, implementation", found)


def test_case(benchmark, case, prepared, implementation):
    with torch.inference_mode():
        try:
            call = implementation.prepare()
            result = call()
        except ImportError as error:
            pytest.skip(f"peer not installed: {error}")
        except Unsupported as error:
            pytest.skip(str(error))
        prepared.check(result, slack(implementation))
        benchmark.group = f"{case.op} {case.label} {case.dtype}"
        benchmark.pedantic(call, rounds=3, warmup_rounds=1)
